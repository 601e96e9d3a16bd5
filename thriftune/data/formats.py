"""What a row means: each format is one function from a row to text with marked answers, registered in one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The prompt of Stanford Alpaca, word for word, so that models trained elsewhere on it stay comparable.
# Source: https://github.com/tatsu-lab/stanford_alpaca#data-release
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_OPENING_CHARACTERS = 200
ROLES = ("system", "user", "assistant", "tool")


class RowError(ValueError):
    """One row cannot be used; the message says why."""


@dataclass(frozen=True)
class MarkedText:
    """A text and the parts of it that are answers.

    Attributes:
        text: What the model reads, without BOS and EOS.
        answers: Half-open (start, end) character ranges of `text` to train on.
        split_when_long: Whether a text longer than a row continues in the next row instead of being cut.
        has_special_tokens: Whether BOS is already in `text`, as a chat template writes it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    split_when_long: bool = False
    has_special_tokens: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages that the tokenizer's own chat template turns into text.

    Attributes:
        messages: Each with `role` and `content`; the last one is the assistant's.
    """

    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Format:
    """One way to read rows.

    Attributes:
        columns: Columns a source must have.
        read: Turns a row into what the model sees; raises RowError for a row that cannot be used.
        question: The part of a usable row that a person would ask, to show beside the answer.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], MarkedText | Conversation]
    question: Callable[[Mapping[str, Any]], str]


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The Alpaca prompt up to where the answer starts."""
    template = _ALPACA_WITH_INPUT if context.strip() else _ALPACA
    return template.format(instruction=instruction, input=context)


def _read_alpaca(row: Mapping[str, Any]) -> MarkedText:
    context = row.get("input")
    if context is not None and not isinstance(context, str):
        raise RowError(f"column 'input' holds a {type(context).__name__}, not text")
    prompt = alpaca_prompt(_text(row, "instruction"), context or "")
    answer = _text(row, "output")
    return MarkedText(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def _read_text(row: Mapping[str, Any]) -> MarkedText:
    text = _text(row, "text")
    return MarkedText(text, ((0, len(text)),), split_when_long=True)


def _read_chat(row: Mapping[str, Any]) -> Conversation:
    messages = row["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RowError("column 'messages' is not a list of messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise RowError(f"message {number} has no role among {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise RowError(f"message {number} ({message['role']}) has no content")
    if messages[-1]["role"] != "assistant":
        raise RowError("the last message is not the assistant's, so there is no answer to train on")
    return Conversation(tuple({"role": m["role"], "content": m["content"]} for m in messages))


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise RowError(f"column {column!r} holds {found}, not text")
    if not value.strip():
        raise RowError(f"column {column!r} is empty")
    return value


def _alpaca_question(row: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (row["instruction"], row.get("input")) if part)


def _last_user_message(row: Mapping[str, Any]) -> str:
    return next((str(m["content"]) for m in reversed(row["messages"]) if m["role"] == "user"), "")


def _opening(row: Mapping[str, Any]) -> str:
    return str(row["text"])[:_OPENING_CHARACTERS]


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), _read_alpaca, _alpaca_question),
    "chat": Format(("messages",), _read_chat, _last_user_message),
    "text": Format(("text",), _read_text, _opening),
}

"""What a tokenizer's chat template makes of a conversation, and what it ends an assistant's turn with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "Four."
_SYSTEM, _USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is two and two?"}
_ASSISTANT = {"role": "assistant", "content": _ANSWER}
# What a template may want of a conversation differs: one of these should please it.
SIMPLEST_CONVERSATIONS = (
    [_USER, _ASSISTANT],
    [_SYSTEM, _USER, _ASSISTANT],
    [_USER, _ASSISTANT, _USER, _ASSISTANT],
)


class TemplateFailsError(ValueError):
    """A chat template makes nothing of a conversation; the message says why."""


@dataclass(frozen=True)
class TurnEnd:
    """What a chat template writes after an answer.

    Attributes:
        text: Through the token that ends the turn, or all there is where none does; without white space around it.
        token: The token that ends the turn: EOS or another that the tokenizer never makes of other text. None where the
            turn ends in plain text, or in nothing.
    """

    text: str
    token: str | None


def apply(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    prompt: bool = False,
) -> str:
    """Apply the chat template of a tokenizer.

    Args:
        messages: The conversation.
        tokenizer: A tokenizer with a chat template.
        tools: Descriptions of the functions that the assistant may call.
        prompt: Whether to open another turn of the assistant at the end.

    Returns:
        The text.

    Raises:
        TemplateFailsError: The template refuses the conversation, or breaks on it.
    """
    from jinja2 import TemplateError

    plain: list[Any] = [dict(message) for message in messages]
    functions: list[Any] | None = list(tools) or None
    try:
        return str(tokenizer.apply_chat_template(plain, tools=functions, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        raise TemplateFailsError(f"the model's chat template refuses it: {error}") from error
    except (  # out of a template's expressions, or of arguments nested too deep for it
        TypeError,
        LookupError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise TemplateFailsError(f"the model's chat template cannot render it ({type(error).__name__})") from error


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> TurnEnd | None:
    """What ends a turn of the assistant: found by rendering a conversation and looking at what follows its answer.

    Many templates end a turn with a token that is not the tokenizer's EOS: ChatML's on the tokenizer of a base model,
    or Gemma's own.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The end, or None where there is no chat template, or one that renders none of the simplest conversations.
    """
    if not tokenizer.chat_template:
        return None
    for messages in SIMPLEST_CONVERSATIONS:
        try:
            text = apply(messages, tokenizer)
        except TemplateFailsError:
            continue
        _before, found, after = text.rpartition(_ANSWER)
        if found:
            return _end_in(after, tokenizer)
    return None


def closings(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The texts that can close a turn of the assistant: what the template ends it with, and EOS."""
    end = turn_end(tokenizer)
    texts = (end.text if end else "", str(tokenizer.eos_token or ""))
    return tuple(dict.fromkeys(filter(None, texts)))


def _end_in(after: str, tokenizer: "PreTrainedTokenizerBase") -> TurnEnd:
    """The end of a turn in what follows its answer: up to the first token that stands for itself alone."""
    # Some tokenizers have tokens of their own for runs of white space, which end nothing.
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    if tokenizer.eos_token:
        tokens.add(str(tokenizer.eos_token))
    longest_first = sorted(tokens, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, longest_first)), after) if tokens else None
    return TurnEnd(after[: found.end()].strip(), found[0]) if found else TurnEnd(after.strip(), None)

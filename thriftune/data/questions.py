"""Encoding a question in the form that training used before an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from thriftune import artifacts
from thriftune.config import DataFormat
from thriftune.data.formats import FORMATS, question_prompt
from thriftune.data.rendering import STAND_IN
from thriftune.errors import DataError
from thriftune.models import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 80  # characters of a prompt in a message


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> list[int]:
    """Encode a prompt in the form that training used before an answer.

    Args:
        prompt: The question of a person.
        tokenizer: The model's tokenizer.
        style: The format that the model was trained on.

    Returns:
        Token ids, with BOS exactly once if the tokenizer uses it.

    Raises:
        DataError: The model's chat template cannot render it.
    """
    return encode_text(prompt_text(prompt, tokenizer, style), tokenizer, style)


def prompt_text(
    prompt: str,
    tokenizer: "PreTrainedTokenizerBase",
    style: DataFormat,
    solved: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
) -> str:
    """A prompt in the form that training used before an answer, as text.

    Args:
        prompt: The question of a person.
        tokenizer: The model's tokenizer.
        style: The format that the model was trained on.
        solved: Questions with their answers that come before it: earlier turns of a conversation, or else examples with
            an empty line between them.
        answer: An answer to put after it, as far as training would put one; None leaves it open.

    Returns:
        The text, which special tokens of the chat template are a part of.

    Raises:
        DataError: The model's chat template cannot render it.
    """
    if _is_chat(style):
        turns = [[_said("user", asked), _said("assistant", said)] for asked, said in solved]
        messages = [*(message for turn in turns for message in turn), _said("user", prompt)]
        opened = _rendered(messages, tokenizer, prompt=True)
        return opened if answer is None else opened + _answer_after(opened, messages, answer, tokenizer)
    examples = "".join(f"{_plain(style, asked, said)}\n\n" for asked, said in solved)
    return examples + _plain(style, prompt, answer)


def encode_text(text: str, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> list[int]:
    """Encode what `prompt_text` made.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        style: The format that the model was trained on.

    Returns:
        Token ids, with BOS exactly once if the tokenizer uses it.
    """
    if _is_chat(style):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text)["input_ids"])
    if style in FORMATS and FORMATS[style].is_labelled:
        return ids  # a text to classify, exactly as the tokenizer makes it
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # a tokenizer that adds EOS to every text would end the answer before it starts
    return ids


def _is_chat(style: DataFormat) -> bool:
    return style in FORMATS and FORMATS[style].is_chat


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _rendered(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", *, prompt: bool) -> str:
    try:
        return chat_template.apply(messages, tokenizer, prompt=prompt)
    except chat_template.TemplateFailsError as error:
        remedy = "Write the prompt in another way, or repair chat_template.jinja."
        shown = repr(messages[-1]["content"][:_SHOWN])
        raise DataError.single("prompts", shown, f"{error}.", remedy) from error


def _answer_after(
    opened: str, messages: list[dict[str, str]], answer: str, tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """An answer with what the template writes before it, such as a space, and without what it writes after it."""
    whole = _rendered([*messages, _said("assistant", answer)], tokenizer, prompt=False)
    other = _rendered([*messages, _said("assistant", STAND_IN)], tokenizer, prompt=False)
    # Not where the answer stands in the text: the template may have a short one in its own marks, as <|im_end|> has d.
    before, found, _after = other.removeprefix(opened).partition(STAND_IN)
    said = before + answer.strip()
    return said if found and whole.startswith(opened + said) else answer


def _plain(style: DataFormat, question: str, answer: str | None) -> str:
    """A question in the form of a format that is no chat, with an answer behind it."""
    text = question_prompt(style, question)
    if answer is None:
        return text
    return f"{text}{answer}" if text[-1:].isspace() else f"{text} {answer}"


def prompt_style(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> DataFormat:
    """The format in which a model expects questions.

    Args:
        directory: The model, or the adapter on it.
        tokenizer: The model's tokenizer.

    Returns:
        The training format in its manifest; without a manifest, chat if there is a chat template, else text.
    """
    return trained_style(directory) or usual_style(tokenizer)


def trained_style(directory: Path) -> DataFormat | None:
    """The format of the questions that a model or adapter was trained on; None where no manifest says it.

    Args:
        directory: The model or adapter.
    """
    if not artifacts.is_whole(directory):
        return None
    data = artifacts.read_manifest(directory).get("config", {}).get("data", {})
    found = next((source["format"] for source in data.get("sources", ())), data.get("format"))
    return found if found in get_args(DataFormat) else None


def usual_style(tokenizer: "PreTrainedTokenizerBase") -> DataFormat:
    """The format of questions to a model of which nothing is known: chat if there is a chat template, else text.

    Args:
        tokenizer: The model's tokenizer.
    """
    return "chat" if tokenizer.chat_template else "text"

"""A question as the tokens that training put before an answer."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from thriftune import artifacts
from thriftune.config import DataFormat
from thriftune.data.formats import FORMATS, question_prompt
from thriftune.errors import DataError
from thriftune.models import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 80  # characters of a prompt


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> list[int]:
    """A prompt as the tokens that training put before an answer.

    Args:
        prompt: What a person asks.
        tokenizer: The model's tokenizer.
        style: How the model was trained to be asked.

    Returns:
        Token ids, with BOS exactly once where the tokenizer uses one.

    Raises:
        DataError: The model's chat template makes nothing of it.
    """
    if style in FORMATS and FORMATS[style].is_chat:
        try:
            text = chat_template.apply([{"role": "user", "content": prompt}], tokenizer, prompt=True)
        except chat_template.TemplateFailsError as error:
            remedy = "Ask otherwise, or repair chat_template.jinja."
            raise DataError.single("prompts", repr(prompt[:_SHOWN]), f"{error}.", remedy) from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(question_prompt(style, prompt))["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # a tokenizer that closes every text with EOS would end the answer before it starts
    return ids


def prompt_style(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> DataFormat:
    """How a model wants to be asked.

    Args:
        directory: The model, or the adapter on it.
        tokenizer: The model's tokenizer.

    Returns:
        The format that its manifest says it was trained on; without one, chat if there is a chat template, else text.
    """
    if artifacts.is_whole(directory):
        data = artifacts.read_manifest(directory).get("config", {}).get("data", {})
        trained_on = next((source["format"] for source in data.get("sources", ())), data.get("format"))
        if trained_on in get_args(DataFormat):
            style: DataFormat = trained_on
            return style
    return "chat" if tokenizer.chat_template else "text"

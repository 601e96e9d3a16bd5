"""Encoding a question in the form that training used before an answer."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from thriftune import artifacts
from thriftune.config import DataFormat
from thriftune.data.formats import FORMATS, question_prompt
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
    if style in FORMATS and FORMATS[style].is_chat:
        try:
            text = chat_template.apply([{"role": "user", "content": prompt}], tokenizer, prompt=True)
        except chat_template.TemplateFailsError as error:
            remedy = "Write the prompt in another way, or repair chat_template.jinja."
            raise DataError.single("prompts", repr(prompt[:_SHOWN]), f"{error}.", remedy) from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(question_prompt(style, prompt))["input_ids"])
    if style in FORMATS and FORMATS[style].is_labelled:
        return ids  # a text to classify, exactly as the tokenizer makes it
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # a tokenizer that adds EOS to every text would end the answer before it starts
    return ids


def prompt_style(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> DataFormat:
    """The format in which a model expects questions.

    Args:
        directory: The model, or the adapter on it.
        tokenizer: The model's tokenizer.

    Returns:
        The training format in its manifest; without a manifest, chat if there is a chat template, else text.
    """
    if artifacts.is_whole(directory):
        data = artifacts.read_manifest(directory).get("config", {}).get("data", {})
        trained_on = next((source["format"] for source in data.get("sources", ())), data.get("format"))
        if trained_on in get_args(DataFormat):
            style: DataFormat = trained_on
            return style
    return "chat" if tokenizer.chat_template else "text"

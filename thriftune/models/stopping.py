"""Where an answer stops: the tokens that end it, which are also listed in a saved model."""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError
from thriftune.limits import is_too_deep
from thriftune.models.chat_template import turn_end
from thriftune.models.classifier import content_of, is_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"


def stop_tokens(tokenizer: "PreTrainedTokenizerBase", listed: int | Sequence[int] | None = None) -> list[int]:
    """The tokens to stop at.

    Args:
        tokenizer: The model's tokenizer.
        listed: The eos_token_id in the model's generation_config: none, a token, or several.

    Returns:
        Token ids: those listed, the tokenizer's EOS, which training puts after an answer, and the token with which the
        chat template ends a turn, if there is one.
    """
    known = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    end = turn_end(tokenizer)
    found = [*known, tokenizer.eos_token_id]
    if end is not None and end.token is not None:
        found.append(tokenizer.convert_tokens_to_ids(end.token))
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def require_readable(directory: Path, source: str) -> None:
    """Refuse a model with an invalid generation_config.json: it is read to load the model and to save the trained one.

    Args:
        directory: The model's directory.
        source: The model's source, for the message.

    Raises:
        ModelSourceError: It is not a JSON object, is nested too deep, or its eos_token_id is not a token.
    """
    file = directory / _FILE
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        listed = content.get("eos_token_id")
        tokens = listed if isinstance(listed, list) else [] if listed is None else [listed]
        is_readable = not is_too_deep(content) and all(isinstance(token, int) for token in tokens)
    except (ValueError, RecursionError, AttributeError):
        is_readable = False
    if not is_readable:
        message = f"its {_FILE} is not a JSON object with numbers as eos_token_id."
        raise ModelSourceError.single(
            "model.source", source, message, "Repair the file, or remove it.", code="model-config-invalid"
        )


def before_stop(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    """The tokens before the first stop token.

    Decoding leaves out special tokens anyway, but a turn may end with a token that is not marked as special.
    """
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))])


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Save a tokenizer with a model, and add the tokens that end its turns to the stop tokens of one that answers.

    In the file, not in the model object: transformers refuses to save a changed generation_config if anything else in
    it is invalid, as in many published ones.

    Args:
        tokenizer: The model's tokenizer.
        directory: Directory of the saved model.
    """
    tokenizer.save_pretrained(directory)
    if is_classifier(content_of(directory)):
        return
    file = directory / _FILE
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    listed = content.get("eos_token_id")
    stops = stop_tokens(tokenizer, listed)
    if stops in (listed, [listed]):
        return
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in stops)
    logger.info("Answers of the saved model stop at %s", names)
    content["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    content.pop("_from_model_config", None)  # else transformers may take the tokens from config.json again
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

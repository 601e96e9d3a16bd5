"""Where an answer stops: the tokens that end one, among those that a saved model stops at."""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError
from thriftune.limits import is_too_deep
from thriftune.models.chat_template import turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"


def stop_tokens(tokenizer: "PreTrainedTokenizerBase", listed: int | Sequence[int] | None = None) -> list[int]:
    """The tokens to stop at.

    Args:
        tokenizer: The model's tokenizer.
        listed: What the model's generation_config lists as eos_token_id: nothing, a token, or several.

    Returns:
        Ids: those listed, the tokenizer's EOS, which training puts after an answer, and the token that the chat
        template ends a turn with, if there is one.
    """
    known = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    end = turn_end(tokenizer)
    found = [*known, tokenizer.eos_token_id]
    if end is not None and end.token is not None:
        found.append(tokenizer.convert_tokens_to_ids(end.token))
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def require_readable(directory: Path, source: str) -> None:
    """Refuse a model whose generation_config.json is none: it is read to load the model, and to save what was trained.

    Args:
        directory: The model's files.
        source: What it is called, for the message.

    Raises:
        ModelSourceError: It is no JSON object, nested too deep, or stops at what is no token.
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
        message = f"its {_FILE} is no JSON object whose eos_token_id are numbers."
        raise ModelSourceError.single(
            "model.source", source, message, "Repair the file, or leave it away.", code="model-config-invalid"
        )


def before_stop(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    """Tokens up to the first that stops, without it.

    Decoding leaves out special tokens by itself, but a turn may end with a token that is not marked as one.
    """
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))])


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Save a tokenizer beside a model, and list what ends its turns among the tokens that the model stops at.

    In the file and not in the model: transformers refuses to save a generation_config that was changed when anything
    else in it is not to its liking, as is the case with many that are published.

    Args:
        tokenizer: The model's tokenizer.
        directory: Where the model was saved.
    """
    tokenizer.save_pretrained(directory)
    file = directory / _FILE
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    listed = content.get("eos_token_id")
    stops = stop_tokens(tokenizer, listed)
    if stops in (listed, [listed]):
        return
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in stops)
    logger.info("Answers of the saved model stop at %s", names)
    content["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    content.pop("_from_model_config", None)  # or transformers may take the tokens from config.json again
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

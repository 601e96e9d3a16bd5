"""A model's config.json, wherever the model is, without its weights."""

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from thriftune import hub
from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError
from thriftune.models import contents, gguf_file, gguf_head
from thriftune.models.files import files_of, real_path
from thriftune.models.source import is_gguf, kind_of
from thriftune.stores import failures, remote
from thriftune.urls import is_remote, path_of

FIELD = "model.source"


def shipped(source: str) -> dict[str, Any] | None:
    """The config.json of a well-known hub id, which needs no network and no token; None for any other source."""
    file = resources.files("thriftune.models").joinpath("architectures", f"{source.lower().replace('/', '--')}.json")
    if kind_of(source) != "hub" or not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def read(model: ModelConfig, token: str | None) -> dict[str, Any]:
    """The config.json of a source: only that file of a hub id or URL, or the configuration in a GGUF file.

    Args:
        model: The model section of a run.
        token: Hub token.

    Raises:
        ModelSourceError: There is no such model, or its config.json cannot be read.
        TransientError: The hub or the store did not answer.
    """
    source = model.source
    if is_gguf(source):
        with tempfile.TemporaryDirectory() as scratch:
            is_here = kind_of(source) == "gguf"
            file = Path(source).expanduser() if is_here else gguf_head.fetch(source, Path(scratch))
            return of_gguf(file, source)
    text = {"hub": _from_hub, "url": _from_store, "directory": _from_directory}[kind_of(source)](model, token)
    if text is None:
        contents.require_files(contents.names_of(source, model.revision, token), source)
        raise ModelSourceError.single(
            FIELD, source, "has no config.json that can be read.", "Give a transformers model directory."
        )
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelSourceError.single(
            FIELD, source, f"its config.json is not JSON: {error}.", "Repair the file.", code="model-config-invalid"
        ) from error
    if not isinstance(content, dict):
        raise ModelSourceError.single(
            FIELD, source, "its config.json is not a mapping.", "Repair the file.", code="model-config-invalid"
        )
    return content


def of_gguf(file: Path, source: str) -> dict[str, Any]:
    """The configuration in a GGUF file, or in its head.

    Args:
        file: The file.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: There is no such file, or it is damaged.
    """
    if not real_path(file if is_remote(source) else source, FIELD, ModelSourceError).is_file():
        raise ModelSourceError.single(FIELD, source, "is a folder, not a GGUF file.", "Check the path.")
    try:
        return gguf_file.config_of(file)
    except gguf_file.UNREADABLE as error:
        raise unreadable_gguf(error, source) from error


def unreadable_gguf(error: BaseException, source: str) -> ModelSourceError:
    """The error for a GGUF file that the library refuses.

    Args:
        error: One of `gguf_file.UNREADABLE`.
        source: The model's source.
    """
    message = f"cannot be read as GGUF: {error}."
    return ModelSourceError.single(FIELD, source, message, "Use a complete file of a known architecture.")


def _from_hub(model: ModelConfig, token: str | None) -> bytes | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with hub.explained_errors(FIELD, model.source, ModelSourceError):
        try:
            return Path(hf_hub_download(model.source, "config.json", revision=model.revision, token=token)).read_bytes()
        except LocalEntryNotFoundError:  # the hub did not answer
            raise
        except EntryNotFoundError:
            return None


def _from_store(model: ModelConfig, _token: str | None) -> bytes | None:
    if path_of(model.source) != model.source:
        contents.listing(model.source)  # refuses it
    with failures.explained(FIELD, model.source, ModelSourceError, "holds no files."):
        try:
            return remote.content(f"{model.source.rstrip('/')}/config.json")
        except FileNotFoundError as error:
            if failures.failure_of(error) != "missing" or failures.is_without_bucket(error):
                raise
            return None


def _from_directory(model: ModelConfig, _token: str | None) -> bytes | None:
    file = files_of(model.source, FIELD, ModelSourceError).get("config.json")
    return None if file is None else file.read_bytes()

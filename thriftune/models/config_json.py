"""A model's config.json, wherever the model is, without its weights."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from thriftune import hub
from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError
from thriftune.models import gguf_file
from thriftune.models.files import exists, files_of
from thriftune.models.source import kind_of
from thriftune.stores import failures, remote

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
    kind, source = kind_of(model.source), model.source
    text: bytes
    if kind == "gguf":
        return _read_gguf(Path(source).expanduser())
    if kind == "hub":
        from huggingface_hub import hf_hub_download

        with hub.explained_errors(FIELD, source, ModelSourceError):
            text = Path(hf_hub_download(source, "config.json", revision=model.revision, token=token)).read_bytes()
    elif kind == "url":
        with failures.explained(FIELD, source, ModelSourceError, "holds no config.json."):
            text = remote.content(f"{source.rstrip('/')}/config.json")
    else:
        directory = Path(source).expanduser()
        file = files_of(directory, FIELD, ModelSourceError).get("config.json") if exists(directory) else None
        if file is None:
            raise ModelSourceError.single(
                FIELD,
                source,
                "does not exist or has no config.json.",
                "Give a transformers model directory.",
                code=ModelSourceError.missing,
            )
        text = file.read_bytes()
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


def _read_gguf(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelSourceError.single(FIELD, file, "no such file.", "Check the path.", code=ModelSourceError.missing)
    try:
        return gguf_file.config_of(file)
    except gguf_file.UNREADABLE as error:
        raise ModelSourceError.single(
            FIELD, file, f"cannot be read as GGUF: {error}.", "Use a complete file of a known architecture."
        ) from error

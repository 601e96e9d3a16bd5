"""What lies where a base model is: the files in a store, and those that every model must have."""

import fnmatch
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from thriftune import hub
from thriftune.errors import ModelSourceError
from thriftune.models.files import ADAPTER_FILES, files_of, is_wanted
from thriftune.models.source import kind_of
from thriftune.stores import failures, remote
from thriftune.urls import path_of

_FIELD = "model.source"
_CONFIG, _WEIGHTS = "config.json", "weights as *.safetensors"
_NEEDED = {
    _CONFIG: ("config.json",),
    _WEIGHTS: ("*.safetensors",),
    "a tokenizer (tokenizer.json or tokenizer.model)": ("tokenizer.json", "tokenizer.model", "vocab.json"),
}
_NAMED = 10  # files in a message


def names_of(source: str, revision: str | None, token: str | None) -> set[str]:
    """Names of the files of a model, without those in folders of it.

    Args:
        source: As in `ModelConfig`; no GGUF file.
        revision: Commit, tag or branch of a hub id.
        token: Hub token.

    Raises:
        ModelSourceError: There is no such model.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    if kind == "hub":
        from huggingface_hub import HfApi

        with hub.explained_errors(_FIELD, source, ModelSourceError):
            info = HfApi(token=token).model_info(source, revision=revision)
        return at_the_top(file.rfilename for file in info.siblings or ())
    if kind == "url":
        root = remote.root_of(source)
        return at_the_top(name.removeprefix(f"{root}/") for name in listing(source))
    files_of(source, _FIELD, ModelSourceError)
    return {path.name for path in Path(source).expanduser().iterdir()}


def at_the_top(names: Iterable[str]) -> set[str]:
    """Those of some names that are in no folder."""
    return {name for name in names if "/" not in name}


def listing(url: str, field: str = _FIELD) -> dict[str, dict[str, Any]]:
    """The files of a model in a store: what the store knows about each, by its name there.

    Args:
        url: The model's folder.
        field: The key that names it, for messages.

    Raises:
        ModelSourceError: There are none, access is denied, or the URL is that of a single file.
        TransientError: The store did not answer.
    """
    has_query = path_of(url) != url
    with failures.explained(field, url, ModelSourceError, "holds no files."):
        entries = {} if has_query else remote.listing(url)
        if not entries and not (has_query and remote.files(url)):
            raise FileNotFoundError(url)
    if has_query:  # which would have to be another one for each file
        raise ModelSourceError.single(
            field,
            url,
            "is the URL of a folder with a query, which cannot be used for the files in it.",
            "Name a .gguf file, or a folder in a store (s3://, gs://, abfs://), whose keys open all of its files.",
        )
    return entries


def require_files(names: Collection[str], source: str) -> None:
    """Refuse files that are not those of a model this package can train.

    Args:
        names: Names of all files, without folders.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: config.json, safetensors or the tokenizer are missing (all are named), or it is an adapter.
    """
    adapter_config, taken = ADAPTER_FILES[0], [name for name in names if is_wanted(name)]
    missing = [what for what, patterns in _NEEDED.items() if not any(fnmatch.filter(taken, p) for p in patterns)]
    if adapter_config in names and {_CONFIG, _WEIGHTS} <= {*missing}:
        raise ModelSourceError.single(
            _FIELD,
            source,
            f"is an adapter ({adapter_config}), not a model.",
            "Name its base model; to continue training the adapter, name it as lora.resume_from.",
            code="model-incomplete",
        )
    if missing:
        found = ", ".join(sorted(name for name in names if not name.startswith("."))[:_NAMED]) or "nothing"
        raise ModelSourceError.single(
            _FIELD,
            source,
            f"lacks {' and '.join(missing)}; it holds {found}.",
            "Give a transformers model directory; convert pickled weights with save_pretrained first.",
            code="model-incomplete",
        )

"""The kinds of `model.source`."""

from pathlib import Path
from typing import Literal

from thriftune.urls import path_of

SourceKind = Literal["hub", "directory", "url", "gguf"]


def is_gguf(source: str) -> bool:
    """Whether a model source is a GGUF file, local or remote."""
    return path_of(source).endswith(".gguf")


def kind_of(source: str) -> SourceKind:
    """The kind of a model source, by its spelling and by what is on this disk."""
    if "://" in source:
        return "url"
    if is_gguf(source):
        return "gguf"
    if Path(source).is_dir() or source.startswith((".", "/", "~")):
        return "directory"
    return "hub"

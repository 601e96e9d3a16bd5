"""What kind of thing `model.source` names."""

from pathlib import Path
from typing import Literal

SourceKind = Literal["hub", "directory", "url", "gguf"]


def kind_of(source: str) -> SourceKind:
    """What a model source is, by its spelling and by what is on this disk."""
    if "://" in source:
        return "url"
    if source.endswith(".gguf"):
        return "gguf"
    if Path(source).is_dir() or source.startswith((".", "/", "~")):
        return "directory"
    return "hub"

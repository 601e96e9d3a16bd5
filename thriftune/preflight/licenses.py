"""The license of a base model, as far as it names one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from thriftune import artifacts
from thriftune.bounded_yaml import MOST_CHARACTERS, BoundedLoader

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

_TAG = "license:"
_LONGEST = 80
_KEPT = "LICENSE.of-gguf"


def of(directory: Path, info: "ModelInfo | DatasetInfo | None" = None) -> str:
    """The license of a model, or an empty text.

    Args:
        directory: Its files except the weights.
        info: The hub's information about it.

    Returns:
        The hub's tag; else what the head of README.md says; else the first line of a file called LICENSE.
    """
    if info is not None:
        for tag in info.tags or ():
            if tag.startswith(_TAG):
                return str(tag).removeprefix(_TAG)
    return _in_front_matter(directory / "README.md") or _first_line(directory)


def keep(directory: Path, found: str) -> None:
    """Write a license beside the files of a model, for `of` to find."""
    if found:
        artifacts.write_text(directory / _KEPT, found + "\n")


def _in_front_matter(readme: Path) -> str:
    if not readme.is_file():
        return ""
    _before, mark, rest = _opening_of(readme).partition("---\n")
    head, end, _text = rest.partition("\n---")
    if not mark or not end:
        return ""
    try:
        content: Any = BoundedLoader(head).get_single_data()
    except (yaml.YAMLError, ValueError):  # of which TooMuchYamlError is one
        return ""
    named = content.get("license_name") or content.get("license") if isinstance(content, dict) else None
    return str(named)[:_LONGEST] if named else ""


def _first_line(folder: Path) -> str:
    for file in sorted(folder.glob("LICENSE*")):
        lines = _opening_of(file).splitlines() if file.is_file() else []
        if first := next((line.strip() for line in lines if line.strip()), ""):
            return first[:_LONGEST]
    return ""


def _opening_of(file: Path) -> str:
    """The beginning of a file of a model, which may contain anything."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(MOST_CHARACTERS)

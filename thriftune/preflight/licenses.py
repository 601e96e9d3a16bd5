"""Under which license a base model stands, as far as it says so itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from thriftune import artifacts

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

_TAG = "license:"
_LONGEST = 80
_KEPT = "LICENSE.of-gguf"


def of(directory: Path, info: "ModelInfo | DatasetInfo | None" = None) -> str:
    """The license of a model, or an empty text.

    Args:
        directory: Its files but the weights.
        info: What the hub says of it.

    Returns:
        The hub's tag; else what the head of README.md says; else the first line of a file called LICENSE.
    """
    if info is not None:
        for tag in info.tags or ():
            if tag.startswith(_TAG):
                return str(tag).removeprefix(_TAG)
    return _in_front_matter(directory / "README.md") or _first_line(directory)


def of_gguf(file: Path) -> str:
    """What a GGUF file says of its license."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("general.license")
    return str(field.contents()) if field is not None else ""


def keep(directory: Path, found: str) -> None:
    """Write a license beside the files of a model, for `of` to find."""
    if found:
        artifacts.write_text(directory / _KEPT, found + "\n")


def _in_front_matter(readme: Path) -> str:
    if not readme.is_file():
        return ""
    _before, mark, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    head, end, _text = rest.partition("\n---")
    if not mark or not end:
        return ""
    try:
        content: Any = yaml.safe_load(head)
    except yaml.YAMLError:
        return ""
    named = content.get("license_name") or content.get("license") if isinstance(content, dict) else None
    return str(named)[:_LONGEST] if named else ""


def _first_line(folder: Path) -> str:
    for file in sorted(folder.glob("LICENSE*")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        if first := next((line.strip() for line in lines if line.strip()), ""):
            return first[:_LONGEST]
    return ""

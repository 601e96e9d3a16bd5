"""Whether a finished directory is still as it was finished, by the sizes and checksums in its manifest.

Sizes are checked whenever a directory is passed on. Content is read once in a run, for a directory that an earlier run
made; 14 GB take 12 s (benchmarks/cache_checks.py). Checksums of samples would be faster, but would miss a hundred
changed bytes.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thriftune import artifacts, digests
from thriftune.artifacts import MANIFEST
from thriftune.digests import FileDigest
from thriftune.errors import Problem, UserError

logger = logging.getLogger(__name__)

_AGAIN = (
    "Run the step that made it again (a cached directory is then replaced), or copy it from where it is undamaged. "
    f"If you changed it on purpose, remove `files` and `checksum` from its {MANIFEST}."
)


def damages(directory: Path, *, content: bool) -> list[str]:
    """What has changed in a directory since it was finished. Files added later are not looked at.

    Args:
        directory: A finished directory.
        content: Whether every file is read, once in this process; else sizes alone are looked at.

    Returns:
        A sentence for each damaged file; none if all is well, or if the manifest is of a version that listed no files.
    """
    try:
        recorded = _recorded(artifacts.read_manifest(directory))
    except UserError as error:
        return [error.problems[0].message]
    except (AttributeError, TypeError, ValueError):
        return [f"{MANIFEST} has an invalid list of files."]
    found = {file.name: _wrong_size(directory, file) for file in recorded}
    if content:
        read = [file for file in recorded if file.sha256 and not found[file.name]]
        for file, now in zip(read, digests.checksums(directory, [file.name for file in read]), strict=True):
            if isinstance(now, OSError):
                found[file.name] = f"{file.name} cannot be read ({now.strerror})."
            elif now != file.sha256:
                found[file.name] = f"{file.name} does not hold what was saved."
    return [damage for damage in found.values() if damage]


def is_reusable(directory: Path) -> bool:
    """Whether a cached directory can be used as it is. Damage is logged: the caller makes it again.

    Args:
        directory: Its path, where nothing need be yet.
    """
    if not directory.is_dir():
        return False
    found = damages(directory, content=True)
    if found:
        logger.warning("%s is damaged and will be made again: %s", directory, " ".join(found))
    return not found


def require_undamaged(
    directory: Path, field: str = "directory", error: type[UserError] = UserError, *, content: bool
) -> None:
    """Refuse a directory that has a manifest and no longer matches it. Any other directory is let through.

    Args:
        directory: What a person or another task passes on.
        field: The key that names it, for the message.
        error: The class to raise.
        content: Whether every file is read, once in this process; else sizes alone are looked at.

    Raises:
        UserError: As `error`, naming each damaged file.
    """
    if not artifacts.is_whole(directory) or _is_of_another(directory):
        return
    if found := damages(directory, content=content):
        raise error([Problem(field, str(directory), damage, _AGAIN) for damage in found])


def _is_of_another(directory: Path) -> bool:
    """Whether the manifest is not from this package, or from a version that recorded no checksums."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return not (isinstance(content, dict) and {"kind", "git_commit", "checksum"} <= content.keys())


def _recorded(manifest: Mapping[str, Any]) -> list[FileDigest]:
    """The files that a manifest lists.

    Args:
        manifest: The parsed manifest.

    Raises:
        ValueError: One of them would not be inside the directory. A malformed list may raise TypeError and the like.
    """
    files = [FileDigest(name, **entry) for name, entry in manifest.get("files", {}).items()]
    for file in files:
        digests.require_inside(file.name)
    return files


def _wrong_size(directory: Path, file: FileDigest) -> str:
    found = directory / file.name
    if not found.is_file():
        return f"{file.name} is missing."
    size = found.stat().st_size
    return "" if size == file.size else f"{file.name} has {size:,} bytes where {file.size:,} were saved."

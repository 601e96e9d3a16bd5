"""Whether a finished directory is still as it was finished, by the sizes and checksums in its manifest.

Sizes are checked whenever a directory is passed on. Content is read once in a run, for a directory that an earlier run
made; 14 GB take 12 s (benchmarks/cache_checks.py). Checksums of samples would be faster, but would miss a hundred
changed bytes.
"""

import json
import logging
from collections.abc import Callable, Mapping
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
    recorded = _recorded(lambda: artifacts.read_manifest(directory))
    if isinstance(recorded, str):
        return [recorded]
    found = {file.name: _wrong_size(file, _size_of(directory / file.name)) for file in recorded}
    if content:
        read = [file for file in recorded if file.sha256 and not found[file.name]]
        for file, now in zip(read, digests.checksums(directory, [file.name for file in read]), strict=True):
            if isinstance(now, OSError):
                found[file.name] = f"{file.name} cannot be read ({now.strerror})."
            elif now != file.sha256:
                found[file.name] = f"{file.name} does not hold what was saved."
    return [damage for damage in found.values() if damage]


def damages_in_store(url: str, manifest: bytes | None, sizes: Mapping[str, int]) -> list[str]:
    """What has changed in a directory of a store since it was finished, by names and sizes.

    Args:
        url: The directory.
        manifest: What its manifest holds; None if there is none.
        sizes: Bytes of each file that is there, by its name in the directory.

    Returns:
        A sentence for each damaged file; none if all is well.
    """
    if manifest is None:
        return [f"{MANIFEST} is missing."]
    content = manifest
    recorded = _recorded(lambda: artifacts.parsed_manifest(content, url))
    if isinstance(recorded, str):
        return [recorded]
    found = [_wrong_size(file, sizes.get(file.name)) for file in recorded]
    return [damage for damage in found if damage]


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


def _recorded(read: Callable[[], Mapping[str, Any]]) -> list[FileDigest] | str:
    """The files that a manifest lists, or why it cannot be said.

    Args:
        read: Reads the manifest.
    """
    try:
        files = [FileDigest(name, **entry) for name, entry in read().get("files", {}).items()]
        for file in files:
            digests.require_inside(file.name)
    except UserError as error:
        return error.problems[0].message
    except (AttributeError, TypeError, ValueError):
        return f"{MANIFEST} has an invalid list of files."
    return files


def _size_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _wrong_size(file: FileDigest, size: int | None) -> str:
    """What is wrong with the size of a file that is there; None means that it is not."""
    if size is None:
        return f"{file.name} is missing."
    return "" if size == file.size else f"{file.name} has {size:,} bytes where {file.size:,} were saved."

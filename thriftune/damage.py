"""Whether a finished directory still is what was finished, by the sizes and checksums in its manifest.

Sizes are looked at whenever a directory is handed on. Content is read once in a run, where a directory comes from an
earlier one; 14 GB take 12 s (benchmarks/cache_checks.py). Checksums of samples would be sooner done, and
would not find a hundred bytes.
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
    "Run what made it again, which makes a cached directory anew, or copy it from where it is whole. "
    f"If you changed it on purpose, take `files` and `checksum` out of its {MANIFEST}."
)


def damages(directory: Path, *, content: bool) -> list[str]:
    """What of a finished directory is not as it was finished. Files that came to it later are not looked at.

    Args:
        directory: A finished directory.
        content: Whether every file is read, once in this process; else sizes alone are looked at.

    Returns:
        A sentence for each file; none where all is well, or where the manifest is of a version that noted no files.
    """
    try:
        recorded = _recorded(artifacts.read_manifest(directory))
    except UserError as error:
        return [error.problems[0].message]
    except (AttributeError, TypeError, ValueError):
        return [f"{MANIFEST} lists no files that can be looked for."]
    found = {file.name: _wrong_size(directory, file) for file in recorded}
    if content:
        read = [file for file in recorded if file.sha256 and not found[file.name]]
        for file, now in zip(read, digests.checksums(directory, [file.name for file in read]), strict=True):
            if isinstance(now, OSError):
                found[file.name] = f"{file.name} cannot be read ({now.strerror})."
            elif now != file.sha256:
                found[file.name] = f"{file.name} holds something else than was saved."
    return [damage for damage in found.values() if damage]


def is_reusable(directory: Path) -> bool:
    """Whether a cached directory can be used as it is. Where it is damaged, that is said: its caller makes it anew.

    Args:
        directory: Where it would be.
    """
    if not directory.is_dir():
        return False
    found = damages(directory, content=True)
    if found:
        logger.warning("%s is damaged, and is made anew: %s", directory, " ".join(found))
    return not found


def require_undamaged(
    directory: Path, field: str = "directory", error: type[UserError] = UserError, *, content: bool
) -> None:
    """Refuse a directory that has a manifest and is not what was finished. Any other directory is let through.

    Args:
        directory: What a person or another task hands on.
        field: What names it, for the message.
        error: What is raised.
        content: Whether every file is read, once in this process; else sizes alone are looked at.

    Raises:
        UserError: As `error`: names each file that is damaged.
    """
    if not artifacts.is_whole(directory) or _is_of_another(directory):
        return
    if found := damages(directory, content=content):
        raise error([Problem(field, str(directory), damage, _AGAIN) for damage in found])


def _is_of_another(directory: Path) -> bool:
    """Whether a file of the name of a manifest is none of this package's, or of a version that noted no checksums."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return not (isinstance(content, dict) and {"kind", "git_commit", "checksum"} <= content.keys())


def _recorded(manifest: Mapping[str, Any]) -> list[FileDigest]:
    """The files that a manifest lists.

    Raises:
        ValueError: One of them would not be inside the directory. A list of another form: also TypeError and the like.
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

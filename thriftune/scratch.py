"""Folders that belong to a living process: told from those that a killed one left, which are removed.

The kernel holds a lock on the folder itself for the process, and for those that it forked, until the last of them ends,
however it ends. It goes along when the folder is renamed, and other containers on this machine see it too.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

# As a pattern, what `new_folder` puts between prefix and suffix. Whoever looks for folders that were left looks for
# that too: what somebody else calls by the same prefix or suffix is removed by nobody.
RANDOM = "[a-z0-9_]" * 8

_UNCLAIMED = ".unclaimed-"
_own: set[Path] = set()


@contextmanager
def new_folder(parent: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """A new folder of this process, removed at the end, if it is still there under its name.

    Args:
        parent: Where it is made.
        prefix: Beginning of its name.
        suffix: End of its name.

    Yields:
        The folder; for its owner only.
    """
    # Locked before it has a name that is looked for.
    made = Path(tempfile.mkdtemp(prefix=_UNCLAIMED, dir=parent))
    lock = os.open(made, os.O_RDONLY)
    try:
        _lock(lock)
        named = made.with_name(f"{prefix}{made.name.removeprefix(_UNCLAIMED)}{suffix}")
        made.rename(named)
        with removed(named):
            yield named
    finally:
        os.close(lock)


@contextmanager
def removed(folder: Path) -> Iterator[None]:
    """Remove a folder at the end, if it is there; also where this process ends by `remove_own`."""
    _own.add(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.discard(folder)


def remove_own() -> None:
    """Remove the folders of this process, which is about to end without leaving its blocks."""
    for named in tuple(_own):
        shutil.rmtree(named, ignore_errors=True)


def remove_left(folders: Iterable[Path]) -> None:
    """Remove those folders whose process is gone.

    Args:
        folders: Made by `new_folder`, by this process or others.
    """
    for left in folders:
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # another one removes it, or it is another user's
            continue
        try:
            if _lock(lock):
                logger.info("Removed what a run that was killed had left: %s", left)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(directory: int) -> bool:
    """Lock a folder for this process; False where another has it, or the filesystem knows no such locks."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""Temporary folders that belong to a living process; those that a killed process left are recognized and removed.

The kernel holds a lock on the folder itself for the process and those that it forked, until the last of them ends,
however it ends. The lock stays when the folder is renamed, and other containers on this machine see it too.
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

# The pattern of what `new_folder` puts between prefix and suffix. Code that looks for leftover folders must match it
# too, so that other people's folders with the same prefix or suffix are never removed.
RANDOM = "[a-z0-9_]" * 8

_UNCLAIMED = ".unclaimed-"
_own: set[Path] = set()


@contextmanager
def new_folder(parent: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """Make a folder for this process, and remove it at the end if it still has its name.

    Args:
        parent: The folder to make it in.
        prefix: Start of its name.
        suffix: End of its name.

    Yields:
        The folder, accessible to its owner only.
    """
    # Locked before it gets a name that other processes look for.
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
    """Remove a folder at the end of the block if it exists; `remove_own` removes it, too."""
    _own.add(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.discard(folder)


def remove_own() -> None:
    """Remove the folders of this process, which is about to exit without leaving its `with` blocks."""
    for named in tuple(_own):
        shutil.rmtree(named, ignore_errors=True)


def remove_left(folders: Iterable[Path]) -> None:
    """Remove the folders whose process is gone.

    Args:
        folders: Folders made by `new_folder`, in this process or others.
    """
    for left in folders:
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # another process removes it, or it is another user's
            continue
        try:
            if _lock(lock):
                logger.info("Removed a folder that a killed run had left: %s", left)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(directory: int) -> bool:
    """Lock a folder for this process; False if another process has the lock, or the filesystem has no such locks."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

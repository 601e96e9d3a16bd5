"""Operators that DeepSpeed compiles when they are needed and the image does not contain them.

torch lets one process compile, and the others wait until its lock file is gone. A process that is killed while it
compiles leaves the file there, and every later process would wait forever. So a stale lock is removed first.
"""

import logging
import os
import time
from pathlib import Path

import psutil

from thriftune import distributed

logger = logging.getLogger(__name__)

# Time between the two looks at a lock: a process that has finished compiling closes the file just before removing it.
_BETWEEN_LOOKS_S = 1.0


def make_ready(name: str) -> None:
    """Prepare for an operator that this process is about to load: remove a stale lock, and log that it is compiled.

    Args:
        name: DeepSpeed's name for it, such as cpu_adam.
    """
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    if installed_ops.get(name) or distributed.current_rank().local_index:
        return
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))  # noqa: SLF001 - where DeepSpeed has it built
    release_if_dead(folder / "lock")
    if not any(folder.glob("*.so")):
        logger.info("DeepSpeed compiles %s once for this machine, which takes minutes; it stays in %s", name, folder)


def release_if_dead(lock: Path) -> None:
    """Remove a lock file of torch that no process on this machine holds.

    Args:
        lock: The file; nothing happens where there is none.
    """
    if _is_left(lock):
        time.sleep(_BETWEEN_LOOKS_S)
        if _is_left(lock):
            logger.warning("A process that was compiling here was killed; removing its lock: %s", lock)
            lock.unlink(missing_ok=True)


def _is_left(lock: Path) -> bool:
    """Whether the file is there and no process has it open; torch's FileBaton keeps it open while it holds the lock."""
    try:
        is_own = lock.stat().st_uid == os.geteuid()  # the open files of another user's processes cannot be seen
    except FileNotFoundError:
        return False
    return is_own and not any(_has_open(process, lock.resolve()) for process in psutil.process_iter())


def _has_open(process: psutil.Process, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file for opened in process.open_files())
    except psutil.Error:  # it has ended, or belongs to another user
        return False

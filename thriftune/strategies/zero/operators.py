"""Operators that DeepSpeed compiles where they are needed and not in the image: said, and not waited for in vain.

torch lets one process compile, and the others wait until its lock file is gone. A process that is killed meanwhile
leaves the file there, and everyone after it would wait for ever.
"""

import logging
import os
import time
from pathlib import Path

import psutil

from thriftune import distributed

logger = logging.getLogger(__name__)

# Between the two looks at a lock: whoever ends its compiling closes the file just before removing it.
_BETWEEN_LOOKS_S = 1.0


def make_ready(name: str) -> None:
    """Clear the way for an operator that this process is about to load.

    Args:
        name: DeepSpeed's name of it, as cpu_adam.
    """
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    if installed_ops.get(name) or distributed.current_rank().local_index:
        return
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))  # noqa: SLF001 - where DeepSpeed has it built
    release_if_dead(folder / "lock")
    if not any(folder.glob("*.so")):
        logger.info("DeepSpeed compiles %s for this machine, once; that takes minutes. Kept in %s", name, folder)


def release_if_dead(lock: Path) -> None:
    """Remove a lock file of torch's that no process of this machine holds.

    Args:
        lock: The file; nothing happens where there is none.
    """
    if _is_left(lock):
        time.sleep(_BETWEEN_LOOKS_S)
        if _is_left(lock):
            logger.warning("A process that compiled here was killed; its lock is removed: %s", lock)
            lock.unlink(missing_ok=True)


def _is_left(lock: Path) -> bool:
    """Whether the file is there and nobody has it open, as torch's FileBaton does while it holds it."""
    try:
        is_own = lock.stat().st_uid == os.geteuid()  # what processes of others have open cannot be seen
    except FileNotFoundError:
        return False
    return is_own and not any(_has_open(process, lock.resolve()) for process in psutil.process_iter())


def _has_open(process: psutil.Process, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file for opened in process.open_files())
    except psutil.Error:  # it ended meanwhile, or it is another user's
        return False

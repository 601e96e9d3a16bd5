"""Errors that only checkpoints have."""

from pathlib import Path
from typing import Self

import psutil

from thriftune.errors import TransientError

_GIB = 2**30


class DiskFullError(TransientError):
    """A local disk has no room left.

    Transient although waiting frees nothing here: the next attempt starts on another node, or in a new pod with an
    empty disk, and resumes from the newest complete checkpoint. That is why it is not tried again in place.
    """

    @classmethod
    def at(cls, path: Path, needed: int = 0) -> Self:
        """The error for a path on the full disk.

        Args:
            path: What could not be written; need not exist.
            needed: Bytes that were to be written there; 0 when unknown.
        """
        need = f", and {needed / _GIB:.2f} GiB are needed" if needed else ""
        return cls(
            f"{path}: no space left on the disk ({free_bytes(path)} bytes free{need}). Give the task more with "
            "THRIFTUNE_DISK_GIB, or name a larger volume with THRIFTUNE_SCRATCH."
        )


class IncompleteError(TransientError):
    """This node did its part of a checkpoint that never became whole: another node did not do its own."""


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a path, which need not exist yet."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return int(psutil.disk_usage(str(there)).free)

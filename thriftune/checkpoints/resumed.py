"""A checkpoint that training goes on from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to resume from.

    Attributes:
        step: Optimizer steps done.
        directory: Its directory on this disk, in the form that transformers' Trainer reads.
        is_converted: Whether it was converted, because another number of ranks wrote it.
        content: Its manifest without the files.
        remarks: Sentences about the differences from the run that wrote it, with the value that is used.
    """

    step: int
    directory: Path
    is_converted: bool
    content: dict[str, Any]
    remarks: tuple[str, ...] = ()

"""How much memory a run really used, sampled while it works, and how that compares with what was predicted."""

import ctypes
import logging
import sys
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from thriftune.overhead import RETURNED_BLOCK

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 0.1
_GIB = 2**30
_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
# A prediction that is further off than this is reported, if it is of more than what libraries take one time or another.
_FAR_OFF = 0.15
_NEGLIGIBLE_GIB = 0.25


class PeakMemory:
    """Context manager that records the peak memory of this process.

    The operating system's own high-water mark is of no use here: it also counts what the process did before the
    block, and locally all tasks of a workflow share one process.

    Attributes:
        start_gib: Resident memory of the process at the start, in GiB.
        process_gib: Peak resident memory of the process, in GiB.
        device_gib: Peak memory allocated by torch on the fullest of this process's GPUs, in GiB.
    """

    def __init__(self) -> None:
        self.start_gib = 0.0
        self.process_gib = 0.0
        self.device_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        import psutil
        import torch

        if torch.cuda.is_available():
            torch.cuda.init()  # the statistics of a process that has not touched a GPU yet cannot be reset
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        self.start_gib = psutil.Process().memory_info().rss / _GIB
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self._stop.set()
        self._thread.join()
        if torch.cuda.is_available():
            self.device_gib = max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / _GIB

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.process_gib = max(self.process_gib, process.memory_info().rss / _GIB)
            if self._stop.wait(_INTERVAL_SECONDS):
                return


@dataclass(frozen=True)
class MemoryUse:
    """What a run used at its peak, beside what its plan predicted, in GiB.

    Attributes:
        device: Of the fullest GPU, as torch counts what it allocated; on a CPU, of the largest process.
        predicted_device: The same, predicted.
        host: Resident memory of all processes of the fullest node.
        predicted_host: The same, predicted.
    """

    device: float
    predicted_device: float
    host: float
    predicted_host: float

    @property
    def remarks(self) -> list[str]:
        """Predictions that were further off than 15 %, as sentences."""
        pairs = (("each device", self.device, self.predicted_device), ("the host", self.host, self.predicted_host))
        return [
            f"{where} used {used:.2f} GiB, and {predicted:.2f} were predicted ({predicted / used - 1:+.0%})."
            for where, used, predicted in pairs
            if used and abs(predicted / used - 1) > _FAR_OFF and abs(predicted - used) > _NEGLIGIBLE_GIB
        ]


def warn_if_far_off(use: MemoryUse) -> None:
    """Say so where a prediction was more than 15 % wrong: the next plan of such a run will be, too."""
    for remark in use.remarks:
        logger.warning("The memory prediction was off: %s Please report it with the manifest of this run.", remark)


def return_freed_blocks(at_least: int = RETURNED_BLOCK) -> None:
    """Make malloc return freed blocks of a size to the system at once, in place of keeping them for later (glibc).

    By default glibc raises this limit to 32 MiB while a program runs; then the thousands of tensors that a step
    allocates and frees stay with the process: 0.5 GB a rank for a 0.5B model under ZeRO-3, and more below it.

    Args:
        at_least: Smallest size, in bytes.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, at_least)

"""Sample the memory that a run really uses, and compare it with the prediction of its plan."""

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
# A prediction with a larger relative error is reported, if the difference is more than libraries vary from run to run.
_FAR_OFF = 0.15
_NEGLIGIBLE_GIB = 0.25


class PeakMemory:
    """Context manager that records the peak memory of this process.

    The operating system's own high-water mark does not help: it includes what the process did before the block, and in
    a local run all tasks of a workflow share one process.

    Attributes:
        start_gib: Resident memory of the process at the start, in GiB.
        process_gib: Peak resident memory of the process, in GiB.
        device_gib: Peak memory allocated by torch on the fullest of this process's GPUs, in GiB.
        reserved_gib: Peak memory that torch's allocator took from one of these GPUs, in GiB.
        context_gib: Memory of one of these GPUs that is held at the end, and not by torch's allocator, in GiB: CUDA's
            context, the libraries' own, and what other processes hold there.
    """

    start_gib: float
    process_gib: float
    device_gib: float
    reserved_gib: float
    context_gib: float

    def __init__(self) -> None:
        self.start_gib = 0.0
        self.process_gib = 0.0
        self.device_gib = self.reserved_gib = self.context_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        import psutil
        import torch

        if torch.cuda.is_available():
            torch.cuda.init()  # the statistics of a process that has not used a GPU yet cannot be reset
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        self.start_gib = psutil.Process().memory_info().rss / _GIB
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.device_gib, self.reserved_gib, self.context_gib = held_on_gpus()

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.process_gib = max(self.process_gib, process.memory_info().rss / _GIB)
            if self._stop.wait(_INTERVAL_SECONDS):
                return


def held_on_gpus() -> tuple[float, float, float]:
    """Peak memory of this process's fullest GPU since `PeakMemory` began, in GiB; zeros without any.

    Returns:
        What torch allocated, what its allocator took, and what is held beside it now.
    """
    import torch

    if not torch.cuda.is_available():
        return 0.0, 0.0, 0.0
    # Others than this process's own belong to other ranks, which measure them.
    own = [i for i in range(torch.cuda.device_count()) if torch.cuda.max_memory_allocated(i)]
    allocated = max((torch.cuda.max_memory_allocated(i) for i in own), default=0)
    reserved = max((torch.cuda.max_memory_reserved(i) for i in own), default=0)
    return allocated / _GIB, reserved / _GIB, max(map(_held_beside, own), default=0) / _GIB


def _held_beside(gpu: int) -> int:
    """Bytes of a GPU that are held, and not by torch's allocator in this process."""
    import torch

    free, total = torch.cuda.mem_get_info(gpu)
    return max(0, total - free - torch.cuda.memory_reserved(gpu))


@dataclass(frozen=True)
class MemoryUse:
    """The peak memory of a run and the prediction of its plan, in GiB.

    Attributes:
        device: Memory of the fullest GPU that torch allocated; on a CPU, memory of the largest process.
        predicted_device: The same, predicted.
        host: Resident memory of all processes on the fullest node.
        predicted_host: The same, predicted.
        reserved: Memory that torch's allocator took from the fullest GPU; 0 on a CPU.
        context: Memory of a GPU that was held beside torch's allocator; 0 on a CPU.
    """

    device: float
    predicted_device: float
    host: float
    predicted_host: float
    reserved: float = 0.0
    context: float = 0.0

    @property
    def remarks(self) -> list[str]:
        """Sentences about the predictions that were wrong by more than 15 %."""
        pairs = (("each device", self.device, self.predicted_device), ("the host", self.host, self.predicted_host))
        return [
            f"{where} used {used:.2f} GiB, and {predicted:.2f} were predicted ({predicted / used - 1:+.0%})."
            for where, used, predicted in pairs
            if used and abs(predicted / used - 1) > _FAR_OFF and abs(predicted - used) > _NEGLIGIBLE_GIB
        ]


def warn_if_far_off(use: MemoryUse) -> None:
    """Log predictions that were wrong by more than 15 %: the next plan of such a run would be wrong too."""
    for remark in use.remarks:
        logger.warning("The memory prediction was off: %s Please report it with the manifest of this run.", remark)


def return_freed_blocks(at_least: int = RETURNED_BLOCK) -> None:
    """Make malloc return freed blocks of some size to the system at once, instead of keeping them for later (glibc).

    By default glibc raises this limit to 32 MiB while a program runs. Then the process keeps the memory of thousands of
    tensors that a step allocates and frees: 0.5 GB per rank for a 0.5B model under ZeRO-3, and more in lower stages.

    Args:
        at_least: Smallest size, in bytes.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, at_least)

"""How much memory a process really used, sampled while it works."""

import threading
from types import TracebackType
from typing import Self

_INTERVAL_SECONDS = 0.1
_GIB = 2**30


class PeakMemory:
    """Context manager that records the peak memory of this process.

    The operating system's own high-water mark is of no use here: it also counts what the process did before the
    block, and locally all tasks of a workflow share one process.

    Attributes:
        host_gib: Peak resident memory of the process, in GiB.
        device_gib: Peak memory allocated by torch, summed over this process's GPUs, in GiB.
    """

    def __init__(self) -> None:
        self.host_gib = 0.0
        self.device_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        import torch

        if torch.cuda.is_available():
            torch.cuda.init()  # the statistics of a process that has not touched a GPU yet cannot be reset
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self._stop.set()
        self._thread.join()
        if torch.cuda.is_available():
            self.device_gib = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / _GIB

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.host_gib = max(self.host_gib, process.memory_info().rss / _GIB)
            if self._stop.wait(_INTERVAL_SECONDS):
                return

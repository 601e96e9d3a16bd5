"""Read how full memory, shared memory, disk and GPU of this machine are now, within the limits of this process."""

import importlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune import container
from thriftune.container import Fill

logger = logging.getLogger(__name__)

_GIB = 2**30


@dataclass(frozen=True)
class Reading:
    """One reading of the machine.

    Attributes:
        process: Resident memory of this process, in GiB.
        host: Memory of the container if it has a limit, else of the host; without caches that the kernel can free.
        disk: The file system with the scratch folder.
        shared_memory: /dev/shm, which is a part of host memory; None if there is none.
        device: The fullest GPU; None if there is none.
    """

    process: float
    host: Fill
    disk: Fill
    shared_memory: Fill | None = None
    device: Fill | None = None


class SystemReader:
    """Takes readings. GPU memory comes from NVML, which counts all processes; without NVML from torch."""

    def __init__(self, scratch: Path) -> None:
        """Find out which GPUs can be read.

        Args:
            scratch: Folder on the disk to watch.
        """
        self._scratch = scratch
        self._gpus = _nvml_gpus() or _torch_gpu

    def __call__(self) -> Reading:
        """Take a reading.

        Raises:
            OSError: The scratch folder does not exist any more.
        """
        import psutil

        memory = psutil.virtual_memory()
        host = Fill((memory.total - memory.available) / _GIB, memory.total / _GIB)
        limited = container.memory_fill()
        return Reading(
            process=psutil.Process().memory_info().rss / _GIB,
            host=limited if limited and limited.size < host.size else host,
            disk=container.disk_fill(self._scratch),
            shared_memory=container.shared_memory_fill(),
            device=max(self._gpus(), key=lambda fill: fill.share, default=None),
        )


def _nvml_gpus() -> Callable[[], list[Fill]] | None:
    """A function that reads all GPUs through NVML; None without a driver or a GPU."""
    nvml: Any = importlib.import_module("pynvml")  # it has no types
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        logger.debug("NVML cannot be used: %s", error)
        return None

    def read() -> list[Fill]:
        try:
            infos = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        except nvml.NVMLError as error:
            logger.debug("NVML does not answer: %s", error)
            return []
        return [Fill(info.used / _GIB, info.total / _GIB) for info in infos]

    return read if handles else None


def _torch_gpu() -> list[Fill]:
    """The GPU of this process, as torch sees it; none until this process has used one.

    Asking about an unused GPU would take half a GiB of it for a context.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:  # after a failed kernel every call fails
        logger.debug("The GPU does not answer: %s", error)
        return []
    return [Fill((total - free) / _GIB, total / _GIB)]

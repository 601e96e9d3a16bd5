"""Read how full memory, shared memory, disk and GPU of this machine are now, within the limits of this process."""

import importlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, not written to
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Fill:
    """How full something is.

    Attributes:
        used: GiB in use.
        size: GiB that this process may use.
    """

    used: float
    size: float

    @property
    def share(self) -> float:
        """Share in use, from 0 to 1."""
        return self.used / self.size if self.size else 0.0


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
        container = cgroup_memory()
        return Reading(
            process=psutil.Process().memory_info().rss / _GIB,
            host=container if container and container.size < host.size else host,
            disk=disk_fill(self._scratch),
            shared_memory=disk_fill(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
            device=max(self._gpus(), key=lambda fill: fill.share, default=None),
        )


def disk_fill(folder: Path) -> Fill:
    """How full the file system of a folder is, without the part reserved for root."""
    usage = shutil.disk_usage(folder)
    return Fill(usage.used / _GIB, (usage.used + usage.free) / _GIB)


def cgroup_memory(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Fill | None:
    """Memory of this container, from cgroup v2 or v1.

    Args:
        root: Where cgroups are mounted.
        own: File that lists the cgroups of this process.

    Returns:
        Memory in use without file cache (what counts when the kernel kills a process), and the limit of the tightest of
        the nested groups; None if there is no limit.
    """
    tightest: Fill | None = None
    try:
        for folder, limit_file, usage_file, cache_key in _cgroup_folders(root, own):
            limit = (folder / limit_file).read_text().strip() if (folder / limit_file).is_file() else "max"
            if limit == "max":
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage_file).read_text()) - int(stat.get(cache_key, 0))
            fill = Fill(used / _GIB, int(limit) / _GIB)
            if tightest is None or fill.size - fill.used < tightest.size - tightest.used:
                tightest = fill
    except (OSError, ValueError) as error:
        logger.debug("cgroup limits cannot be read: %s", error)
        return None
    return tightest


def _cgroup_folders(root: Path, own: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Folder of every cgroup of this process, from its own outwards, with the names of limit, usage and cache."""
    groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    v1 = next((path for _, kinds, path in groups if "memory" in kinds.split(",")), None)
    v2 = next((path for number, kinds, path in groups if number == "0" and not kinds), None)
    if v1 is not None:
        names, base, path = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            root / "memory",
            v1,
        )
    elif v2 is not None:
        names, base, path = ("memory.max", "memory.current", "inactive_file"), root, v2
    else:
        return
    # A container sees its own group at the root, whatever path the file names; walking outwards ends there too.
    folder = base / path.lstrip("/")
    while True:
        yield folder, *names
        if folder in (base, folder.parent):
            return
        folder = folder.parent


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

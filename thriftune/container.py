"""What this container may use of its machine, and how full that is: memory, CPUs, /dev/shm, disk."""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, not written to
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = ("max", "-1")


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


def disk_fill(folder: Path) -> Fill:
    """How full the file system of a folder is, without the part reserved for root."""
    usage = shutil.disk_usage(folder)
    return Fill(usage.used / _GIB, (usage.used + usage.free) / _GIB)


def shared_memory_fill() -> Fill | None:
    """How full /dev/shm is; None if there is none."""
    return disk_fill(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None


def memory_fill(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Fill | None:
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
        for folder, is_v2 in _groups("memory", root, own):
            limit = _limit(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
            if limit is None:
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = int(stat.get("inactive_file" if is_v2 else "total_inactive_file", 0))
            used = int((folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")).read_text()) - cache
            fill = Fill(used / _GIB, limit / _GIB)
            if tightest is None or fill.size - fill.used < tightest.size - tightest.used:
                tightest = fill
    except (OSError, ValueError) as error:
        logger.debug("cgroup limits cannot be read: %s", error)
        return None
    return tightest


def cpus(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float:
    """CPUs that this process may use: those it may run on, or its share of their time if that is less.

    Args:
        root: Where cgroups are mounted.
        own: File that lists the cgroups of this process.
    """
    found: list[float] = [len(os.sched_getaffinity(0))]  # a cpuset, too
    try:
        for folder, is_v2 in _groups("cpu", root, own):
            quota, period = _cpu_time(folder) if is_v2 else _cpu_time_v1(folder)
            if quota not in _NO_LIMIT:
                found.append(int(quota) / int(period))
    except (OSError, ValueError) as error:
        logger.debug("cgroup limits cannot be read: %s", error)
    return min(found)


def _cpu_time(folder: Path) -> list[str]:
    file = folder / "cpu.max"  # the root group has none
    return file.read_text().split() if file.is_file() else ["max", ""]


def _cpu_time_v1(folder: Path) -> list[str]:
    files = [folder / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return [file.read_text().strip() for file in files] if files[0].is_file() else ["-1", ""]


def _limit(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else "max"
    return None if text in _NO_LIMIT else int(text)


def _groups(controller: str, root: Path, own: Path) -> Iterator[tuple[Path, bool]]:
    """Folder of every cgroup of this process for a controller, from its own outwards, and whether it is of v2."""
    groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    v1 = next((path for _, kinds, path in groups if controller in kinds.split(",")), None)
    v2 = next((path for number, kinds, path in groups if number == "0" and not kinds), None)
    path = v2 if v1 is None else v1
    if path is None:
        return
    base = root if v1 is None else root / controller
    # A container sees its own group at the root, whatever path the file names; walking outwards ends there too.
    folder = base / path.lstrip("/")
    while True:
        yield folder, v1 is None
        if folder in (base, folder.parent):
            return
        folder = folder.parent

"""Sample memory, disk and GPU over a whole run for the report, and warn before something is full."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from thriftune.container import SHARED_MEMORY, Fill
from thriftune.training.guards.readings import Reading, SystemReader

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
# Points that a chart can show: 50 minutes at 5 s per point; after that every point stands for 10 s, 20 s, and so on.
MOST_POINTS = 600
# The first leaves time to act, the second says that nobody did. Not for GPUs, which are full by design.
THRESHOLDS = (0.85, 0.95)
# Seconds over which the present rate is measured: several steps, not the whole run.
_SLOPE_SECONDS = 300.0
# No forecast is shown if it would be full only after this time.
_LONGEST_FORECAST_SECONDS = 24 * 3600.0

Resource = Literal["disk", "shared memory", "host memory"]
_REMEDIES: dict[Resource, str] = {
    "disk": "Give the pods more ephemeral storage, or keep fewer checkpoints.",
    "shared memory": "Give the pods a larger /dev/shm, or use fewer data loader workers.",
    "host memory": "Use nodes with more memory, fewer processes per node, or offload less to the host.",
}


@dataclass(frozen=True)
class Samples:
    """Memory and disk over a run. Every list has an entry for each point, or is empty if there is no such resource.

    Each point is the highest of the readings it stands for. `asdict` gives JSON, and `Samples(**...)` reads it.

    Attributes:
        seconds: Time of each point since the start.
        process: Resident memory of the process, in GiB.
        host: Memory in use of the container or host, in GiB.
        disk: Disk in use, in GiB.
        shared_memory: /dev/shm in use, in GiB.
        device: Memory in use of the fullest GPU, in GiB.
        host_limit: Memory of the container or host, in GiB; like the other limits, 0 if there is no such resource.
        disk_limit: Size of the disk, in GiB.
        shared_memory_limit: Size of /dev/shm, in GiB.
        device_limit: Memory of that GPU, in GiB.
    """

    seconds: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    shared_memory: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    host_limit: float = 0.0
    disk_limit: float = 0.0
    shared_memory_limit: float = 0.0
    device_limit: float = 0.0


class History:
    """Readings over time in bounded memory: when it is full, two neighbours become one point with the higher values."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        """Start without readings.

        Args:
            most: Largest number of points; even.
        """
        self._most = most
        self._points: list[tuple[float, Reading]] = []
        self._pending: list[tuple[float, Reading]] = []
        self._stride = 1

    def add(self, seconds: float, reading: Reading) -> None:
        """Add a reading.

        Args:
            seconds: Since the start.
            reading: What was read then.
        """
        self._pending.append((seconds, reading))
        if len(self._pending) < self._stride:
            return
        self._points.append(_highest(self._pending))
        self._pending = []
        if len(self._points) >= self._most:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_highest(list(pair)) for pair in pairs]
            self._stride *= 2

    def samples(self) -> Samples:
        """All points, including the unfinished one."""
        points = [*self._points, *([_highest(self._pending)] if self._pending else [])]
        if not points:
            return Samples()
        readings = [reading for _, reading in points]
        devices = [reading.device or Fill(0.0, 0.0) for reading in readings]
        shared = [reading.shared_memory or Fill(0.0, 0.0) for reading in readings]
        device_limit, shared_limit = max(fill.size for fill in devices), max(fill.size for fill in shared)
        return Samples(
            seconds=[round(seconds, 1) for seconds, _ in points],
            process=[round(reading.process, 3) for reading in readings],
            host=[round(reading.host.used, 3) for reading in readings],
            disk=[round(reading.disk.used, 3) for reading in readings],
            shared_memory=[round(fill.used, 3) for fill in shared] if shared_limit else [],
            device=[round(fill.used, 3) for fill in devices] if device_limit else [],
            host_limit=round(readings[-1].host.size, 3),
            disk_limit=round(readings[-1].disk.size, 3),
            shared_memory_limit=round(shared_limit, 3),
            device_limit=round(device_limit, 3),
        )


@dataclass(frozen=True)
class FillWarning:
    """Something that is nearly full.

    Attributes:
        seconds: Since the start.
        resource: What is nearly full.
        share: Share in use.
        seconds_left: Seconds until it is full at the present rate; None if it does not fill up within a day.
        text: All of it as sentences, with the remedy.
    """

    seconds: float
    resource: Resource
    share: float
    seconds_left: float | None
    text: str


class FillWatch:
    """Warns once for each resource and threshold that is crossed."""

    def __init__(self, disk_name: str = "the disk") -> None:
        """Start without warnings.

        Args:
            disk_name: Name of the disk in warnings.
        """
        self._names: dict[Resource, str] = {
            "disk": disk_name, "shared memory": str(SHARED_MEMORY), "host memory": "Host memory",
        }  # fmt: skip
        self._said: dict[Resource, float] = {}
        self._recent: deque[tuple[float, Reading]] = deque()

    def check(self, seconds: float, reading: Reading) -> list[FillWarning]:
        """The warnings that a reading is the first to cause.

        Args:
            seconds: Since the start.
            reading: What was read then.
        """
        self._recent.append((seconds, reading))
        while self._recent[0][0] < seconds - _SLOPE_SECONDS:
            self._recent.popleft()
        warnings = []
        for resource, fill in _watched(reading):
            crossed = max((threshold for threshold in THRESHOLDS if fill.share >= threshold), default=0.0)
            if crossed > self._said.get(resource, 0.0):
                self._said[resource] = crossed
                warnings.append(self._warning(seconds, resource, fill))
        return warnings

    def _warning(self, seconds: float, resource: Resource, fill: Fill) -> FillWarning:
        left = self._seconds_left(resource)
        soon = "" if left is None else f" and fills in about {_duration(left)}"
        state = f"{self._names[resource]} is {fill.share:.0%} full ({fill.used:.1f} of {fill.size:.1f} GiB){soon}."
        return FillWarning(seconds, resource, fill.share, left, f"{state} {_REMEDIES[resource]}")

    def _seconds_left(self, resource: Resource) -> float | None:
        (first_at, first), (last_at, last) = self._recent[0], self._recent[-1]
        before, now = dict(_watched(first)).get(resource), dict(_watched(last))[resource]
        if before is None or last_at <= first_at or now.used <= before.used:
            return None
        left = (now.size - now.used) * (last_at - first_at) / (now.used - before.used)
        return left if left <= _LONGEST_FORECAST_SECONDS else None


class ResourceWatch:
    """Context manager that samples while its block runs, and warns in the log.

    Attributes:
        warnings: The warnings so far.
    """

    warnings: list[FillWarning]

    def __init__(
        self, scratch: Path, interval_seconds: float = INTERVAL_SECONDS, read: Callable[[], Reading] | None = None
    ) -> None:
        """Prepare to sample; sampling starts with `with`.

        Args:
            scratch: Folder on the disk to watch: where checkpoints are written.
            interval_seconds: Seconds between two readings.
            read: Takes a reading; None to read this machine.
        """
        self.warnings = []
        self._read = read or SystemReader(scratch)
        self._interval = interval_seconds
        self._history = History()
        self._fill_watch = FillWatch(str(scratch))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._sample, name="resource watch", daemon=True)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def samples(self) -> Samples:
        """The samples so far."""
        with self._lock:
            return self._history.samples()

    def _sample(self) -> None:
        ends = False
        while not ends:
            ends = self._stop.is_set()  # one last reading at the end, so that even a short block has one
            try:
                reading = self._read()
            except OSError as error:  # the folder was just removed; the next reading may work
                logger.debug("Resources cannot be read: %s", error)
            else:
                self._take(time.monotonic() - self._started, reading)
            self._stop.wait(self._interval)

    def _take(self, seconds: float, reading: Reading) -> None:
        warnings = self._fill_watch.check(seconds, reading)
        with self._lock:
            self._history.add(seconds, reading)
            self.warnings += warnings
        for warning in warnings:
            logger.warning("%s", warning.text)


def _watched(reading: Reading) -> Iterator[tuple[Resource, Fill]]:
    yield "disk", reading.disk
    yield "host memory", reading.host
    if reading.shared_memory is not None:
        yield "shared memory", reading.shared_memory


def _highest(points: list[tuple[float, Reading]]) -> tuple[float, Reading]:
    """One point for several, at the time of the last one."""
    readings = [reading for _, reading in points]
    return points[-1][0], Reading(
        process=max(reading.process for reading in readings),
        host=_higher([reading.host for reading in readings]),
        disk=_higher([reading.disk for reading in readings]),
        shared_memory=_highest_of([reading.shared_memory for reading in readings]),
        device=_highest_of([reading.device for reading in readings]),
    )


def _higher(fills: list[Fill]) -> Fill:
    return max(fills, key=lambda fill: fill.used)


def _highest_of(fills: list[Fill | None]) -> Fill | None:
    there = [fill for fill in fills if fill is not None]
    return _higher(there) if there else None


def _duration(seconds: float) -> str:
    """A time as text, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""What a transfer has done so far, in the log: every few seconds a line, and one at the end."""

import logging
import threading
import time

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_MIB, _GIB = 1 << 20, 1 << 30


class StoppedError(Exception):
    """The transfer that this file is a part of has ended."""


class Meter:
    """Counts the bytes of a transfer, logs its rate and the time left, and stops it. Safe in threads."""

    def __init__(self, what: str, total: int, *, every_s: float = _EVERY_S) -> None:
        """Start the clock.

        Args:
            what: What is being done, such as: Fetching s3://bucket/model.
            total: Bytes to move; 0 if not known yet.
            every_s: Seconds between two lines.
        """
        self.total = total
        self._what, self._every_s = what, every_s
        self._done, self._kept, self._lock, self._stopped = 0, 0, threading.Lock(), threading.Event()
        self._began = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that were moved; a negative number for bytes that have to be moved again.

        Args:
            count: Bytes.

        Raises:
            StoppedError: The transfer has been stopped.
        """
        if self._stopped.is_set() and count > 0:
            raise StoppedError
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < self._every_s:
                return
            self._said, done = now, self._done
        rate = max(done, 1) / (now - self._began)
        left = self.total - self._kept - done
        of = f" of {_size(self.total - self._kept)}" if self.total else ""
        rest = f", about {_time(left / rate)} left" if left > 0 else ""
        logger.info("%s: %s%s, %.0f MiB/s%s", self._what, _size(done), of, rate / _MIB, rest)

    def keep(self, count: int) -> None:
        """Count bytes that need not be moved.

        Args:
            count: Bytes.
        """
        with self._lock:
            self._kept += count

    def stop(self) -> None:
        """End what other threads are moving, at their next bytes."""
        self._stopped.set()

    def finish(self) -> None:
        """Log the whole, if it took long enough for a line in between."""
        seconds = time.monotonic() - self._began
        if seconds >= self._every_s:
            rate = self._done / seconds / _MIB
            logger.info("%s: done, %s in %s, %.0f MiB/s", self._what, _size(self._done), _time(seconds), rate)


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

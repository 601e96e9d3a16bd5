"""What a transfer has done so far, in the log: every few seconds a line, and one at the end."""

import logging
import threading
import time

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_MIB, _GIB = 1 << 20, 1 << 30


class Meter:
    """Counts the bytes of a transfer, and logs its rate and the time left. Safe in threads."""

    def __init__(self, what: str, total: int, *, every_s: float = _EVERY_S) -> None:
        """Start the clock.

        Args:
            what: What is being done, such as: Fetching s3://bucket/model.
            total: Bytes to move.
            every_s: Seconds between two lines.
        """
        self._what, self._total, self._every_s = what, total, every_s
        self._done, self._lock = 0, threading.Lock()
        self._began = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that were moved; a negative number for bytes that have to be moved again.

        Args:
            count: Bytes.
        """
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < self._every_s:
                return
            self._said, done = now, self._done
        rate = max(done, 1) / (now - self._began)
        left = max(0, self._total - done) / rate
        logger.info(
            "%s: %s of %s, %.0f MiB/s, about %s left",
            self._what,
            _size(done),
            _size(self._total),
            rate / _MIB,
            _time(left),
        )

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

"""End a process whose training hangs, instead of paying for GPUs that wait for a peer that never comes."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again": a stall is a lost peer or a lost network far more often than a bug. Not 1,
# which an exception gives, and not above 128, where a shell puts signals.
STALLED = 75

# Interval of the watching thread, as a share of the limit, with its least and largest value in seconds.
_SHARE = 0.1
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 5.0
# The log and on_stall run in a thread with a time limit: the thread that hangs may hold a lock that they need.
_LAST_WORDS_SECONDS = 10.0
# faulthandler's own timer needs no interpreter lock: it ends the process if even the watching thread cannot run.
_LOCKED_FACTOR = 1.5
# The file descriptor: sys.stderr may have been replaced by something without a file.
_STDERR = 2


class StallWatch:
    """Context manager that ends this process with status 75 when no step was done for a while.

    Each rank has one: every rank of a hung collective waits, and each logs where. The process ends by `os._exit`, since
    an exception does not reach a main thread that waits in C code, and an orderly exit would wait for that thread.
    """

    def __init__(self, seconds: float, on_stall: Callable[[float], None] | None = None) -> None:
        """Prepare to watch; watching starts with `with`.

        Args:
            seconds: Time without a step that counts as a stall. It should be several times the slowest step; the first
                step loads kernels and connects all ranks.
            on_stall: Called before the process ends, with the seconds since the last step, in its own thread. It has
                10 s, and must not do anything collective.
        """
        self._seconds = seconds
        self._on_stall = on_stall
        self._last = time.monotonic()
        self._pauses = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)

    def __enter__(self) -> Self:
        self.beat()
        self._arm_for_lock()  # the thread may never get the chance
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self) -> None:
        """Note that a step was done."""
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count this block as a stall: loading, saving and evaluating have no steps. May be nested."""
        with self._lock:
            self._pauses += 1
            faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            with self._lock:
                self.beat()
                self._pauses -= 1

    def _watch(self) -> None:
        wait = min(max(self._seconds * _SHARE, _SHORTEST_WAIT), _LONGEST_WAIT)
        try:
            while not self._stop.wait(wait):
                with self._lock:
                    still = 0.0 if self._pauses else time.monotonic() - self._last
                    if not self._pauses:
                        self._arm_for_lock()
                if still > self._seconds:
                    self._end(still)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _arm_for_lock(self) -> None:
        """Let faulthandler end the process, with status 1, if other code never releases the interpreter lock."""
        faulthandler.dump_traceback_later(self._seconds * _LOCKED_FACTOR, exit=True, file=_STDERR)

    def _end(self, still: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        try:
            last_words = threading.Thread(target=self._say, args=(still,), daemon=True)
            last_words.start()
            last_words.join(_LAST_WORDS_SECONDS)
            faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        finally:
            os._exit(STALLED)

    def _say(self, still: float) -> None:
        logger.critical(
            "No step for %.0f s (limit %.0f s): this process ends with status %d, to be tried again. Its stacks:",
            still, self._seconds, STALLED,
        )  # fmt: skip
        if self._on_stall is not None:
            self._on_stall(still)

"""End a process whose training stands still, in place of paying for GPUs that wait for a peer that never comes."""

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

# How often the thread looks, as a share of the limit, and at least and at most in seconds.
_SHARE = 0.1
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 5.0
# The log and on_stall run beside the exit, not before it: the thread that hangs may hold a lock that they want.
_LAST_WORDS_SECONDS = 10.0
# faulthandler's own clock needs no interpreter lock. It ends the process when even the watching thread cannot run.
_LOCKED_FACTOR = 1.5
# The file descriptor: sys.stderr may have been replaced by something without a file.
_STDERR = 2


class StallWatch:
    """Context manager that ends this process with status 75 when no step was done for a while.

    One per rank: every rank of a hung collective waits, and each shows where. It ends by `os._exit`, as an exception
    does not reach a main thread that waits in C code, and an orderly exit would wait for it.
    """

    def __init__(self, seconds: float, on_stall: Callable[[float], None] | None = None) -> None:
        """Not watching yet; that begins with `with`.

        Args:
            seconds: Time without a step that counts as a stall. Several times the slowest step; the first one loads
                kernels and connects all ranks.
            on_stall: Called with the seconds since the last step before the process ends, in a thread of its own. It
                has 10 s. For notes, not for anything collective.
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
        self._arm_for_lock()  # the thread may never get to it
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self) -> None:
        """A step was done."""
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts as a stall in here: loading, saving and evaluating have no steps. May be nested."""
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
        """Have faulthandler end the process, with status 1, if code that keeps the interpreter lock stops us too."""
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
            "No step for %.0f s (limit %.0f s): this process ends with status %d, to be tried again. Where it stood:",
            still, self._seconds, STALLED,
        )  # fmt: skip
        if self._on_stall is not None:
            self._on_stall(still)

"""End a local run within ten seconds of Ctrl-C or SIGTERM, whatever it is doing, and print how to continue.

The main thread may be in a library's code for minutes, where no exception reaches it. So a separate thread handles the
signal: it gives a training notice to save a last checkpoint, ends every process of the run, and then this one. The main
thread is halted meanwhile: it would start workers again, or end with a misleading error.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil

from tasks import local_run, settings, way_on
from thriftune import artifacts, scratch
from thriftune.config import RunConfig
from thriftune.redaction import redacted

# A shell's exit status for a program ended by a signal is this plus the signal's number.
_ENDED_BY = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Halts the main thread; neither torch nor flytekit uses it.
_HALT = signal.SIGUSR1
_HALT_S = 0.5
# Time for a training to end its step and save. After that everything is killed, within the rest of the ten seconds.
_NOTICE_S = 6.0
_KILL_S = 1.0
# Limit for everything, in case a store does not answer or a file system hangs.
_LIMIT_S = 9.0
# Python's process that removes shared memory and semaphores when the processes that used them are gone.
_CLEANER = "multiprocessing.resource_tracker"
_QUIET_CLEANER = f"ignore::UserWarning:{_CLEANER}"


@dataclass
class _Interruption:
    """What the listening thread must know about the rest of the process.

    Attributes:
        is_on: Whether the thread listens.
        signal_number: The signal that came; 0 if none did.
        config: The run whose training is running, or ran last.
        goes_on: What to say of the same command, where that goes on with what was trained; empty where it begins again.
        checkpoints: Directory of its checkpoints.
        is_training: Whether a training is running.
        has_workers: Whether it runs in other processes.
        ended: Set when the training has ended, by itself or after a notice.
        halted: Set when the main thread is halted.
    """

    is_on: bool = False
    signal_number: int = 0
    config: RunConfig | None = None
    goes_on: str = ""
    checkpoints: Path = Path()
    is_training: bool = False
    has_workers: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    halted: threading.Event = field(default_factory=threading.Event)


_state = _Interruption()


class EndsWhenInterrupted:
    """Mixin for a task class: the first task of a local run starts to listen for signals."""

    def local_execute(self, ctx: Any, **kwargs: Any) -> Any:
        """Run the task in this process."""
        if local_run.is_ours() and not _state.is_on:
            local_run.begin()
            _listen()
        above: Any = super()
        return above.local_execute(ctx, **kwargs)


def is_listening() -> bool:
    """Whether this process listens for signals, which is the first process of a local run."""
    return _state.is_on


@contextmanager
def training(config: RunConfig, *, in_workers: bool) -> Iterator[None]:
    """Mark a block as a training: an interruption gives it notice first, and then names its checkpoints.

    Args:
        config: The run.
        in_workers: Whether other processes train instead of this one.
    """
    if _state.is_on:  # determined here, as Flyte's context differs in another thread
        _state.checkpoints = settings.result_path(config.name, "checkpoints")
    _state.config, _state.goes_on = config, ""
    with _marked(has_workers=in_workers):
        yield


@contextmanager
def trials(number: int) -> Iterator[None]:
    """Mark a block in which trials train in other processes: they get notice, and the same command goes on with them.

    Args:
        number: How many have no result yet.
    """
    _state.config = None
    _state.goes_on = f"To go on (of {number} trials those that finished are not trained again, the others resume)"
    with _marked(has_workers=True):
        yield


@contextmanager
def _marked(*, has_workers: bool) -> Iterator[None]:
    """A block in which something trains.

    Args:
        has_workers: Whether it does so in other processes.
    """
    _state.has_workers = has_workers
    _state.ended.clear()
    _state.is_training = True
    try:
        yield
    finally:
        _state.is_training = False
        _state.ended.set()
        if _state.signal_number:  # the other thread ends the process; this one must not report anything
            threading.Event().wait()


def left_to_parent() -> None:
    """In a worker, ignore Ctrl-C while the parent process lives, which gives notice; end if the parent is gone.

    The kernel sends the same signal when the parent process dies.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_without_parent(number: int, _: Any) -> None:
        if not parent.is_alive():
            os._exit(_ENDED_BY + number)

    signal.signal(signal.SIGINT, end_without_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _listen() -> None:
    """Start to listen for signals."""
    _state.is_on = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: None)
    signal.signal(_HALT, _halted)
    # Started here so that it does not warn about what it finds at the end, which it is there to remove.
    sys.warnoptions.append(_QUIET_CLEANER)
    resource_tracker.ensure_running()
    sys.warnoptions.remove(_QUIET_CLEANER)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(reader,), name="interruption", daemon=True).start()
    # The terminal sends a Ctrl-C to every process of the run. Processes started from here on inherit this mask and
    # leave it to the listening thread, which does not have the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _hear(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in _SIGNALS:
                _end(number)


def _end(number: int) -> None:
    """Give notice, end all processes of the run, print how to continue, and end."""
    _state.signal_number = number
    logging.disable()  # libraries would report the processes that are ended here
    until = time.monotonic() + _NOTICE_S
    threading.Thread(target=_end_late, args=(number,), name="interruption limit", daemon=True).start()
    try:
        _say(f"\nInterrupted by {signal.Signals(number).name}: ending within ten seconds.")
        # Listed first: children of a process that has ended can no longer be found.
        processes = _children(recursive=True)
        if _state.is_training and not _state.has_workers:
            os.kill(os.getpid(), signal.SIGTERM)
            _state.ended.wait(max(until - time.monotonic(), 0))
        _halt()
        if _state.is_training and _state.has_workers:
            _give_notice(until)
        _kill({*processes, *_children(recursive=True)})
        scratch.remove_own()
        scratch.remove_left(artifacts.unfinished(settings.local_root()))  # of its workers
        _say(_way_on())
    finally:
        os._exit(_ENDED_BY + number)


def _end_late(number: int) -> None:
    """End the process if the steps before the end take too long."""
    time.sleep(_LIMIT_S)
    try:
        _kill(set(_children(recursive=True)))
        place = f"; checkpoints, if there are any, are in {way_on.shown(_state.checkpoints)}" if _state.config else ""
        _say(f"To start again: {way_on.command()}{place}")
    finally:
        os._exit(_ENDED_BY + number)


def _halt() -> None:
    """Halt the main thread, at the latest when it returns from a library's code."""
    signal.pthread_kill(threading.main_thread().ident or 0, _HALT)
    _state.halted.wait(_HALT_S)


def _halted(*_: object) -> None:
    """Wait forever. The signal of a training's worker is still handled meanwhile."""
    _state.halted.set()
    threading.Event().wait()


def _give_notice(until: float) -> None:
    """Let workers save what they trained, as before a node goes away."""
    workers = _children(recursive=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.terminate()
    psutil.wait_procs(workers, max(until - time.monotonic(), 0))


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _KILL_S)
    # Stopped now, or its warnings would be the last lines of the run; Python stops it only at its own end.
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # noqa: SLF001


def _children(*, recursive: bool) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=recursive):
        try:
            if not any(_CLEANER in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _say(text: str) -> None:
    with suppress(OSError):  # the reader may be gone: tee gets the terminal's signal too
        os.write(2, f"{redacted(text)}\n".encode())  # not through logging, whose lock the main thread may hold


def _way_on() -> str:
    if _state.goes_on:
        return f"{_state.goes_on}: {way_on.command()}"
    return way_on.of(_state.config, _state.checkpoints)

"""End a local run within ten seconds of Ctrl-C or SIGTERM, whatever it is doing, and print how to continue.

The main thread may be in a library's code for minutes, where no exception reaches it. So a separate thread handles the
signal: it gives a training notice to save a last checkpoint, ends every process of the run, and then this one. The main
thread is halted meanwhile: it would start workers again, or end with a misleading error.
"""

import logging
import multiprocessing
import os
import shlex
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
import yaml

from tasks import local_run, settings
from thriftune import artifacts, scratch
from thriftune.checkpoints import resume_from
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError
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
        checkpoints: Directory of its checkpoints.
        is_training: Whether a training is running.
        has_workers: Whether it runs in other processes.
        ended: Set when the training has ended, by itself or after a notice.
        halted: Set when the main thread is halted.
    """

    is_on: bool = False
    signal_number: int = 0
    config: RunConfig | None = None
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
    _state.config, _state.has_workers = config, in_workers
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
        place = f"; checkpoints, if there are any, are in {_shown(_state.checkpoints)}" if _state.config else ""
        _say(f"To start again: {_command()}{place}")
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


def _command() -> str:
    return shlex.join(["pyflyte", *sys.argv[1:]])


def _way_on() -> str:
    """How to continue, in one line."""
    config = _state.config
    if config is None:
        return f"To start again: {_command()}"
    step = _newest_step(_state.checkpoints)
    if step is not None:
        return f"To resume from step {step}: {_command_from(config, _state.checkpoints)}"
    if config.checkpoints.resume_from:  # its checkpoints are not checked again: the store may be far away
        return f"No checkpoint was saved yet. To resume from {config.checkpoints.resume_from} again: {_command()}"
    return f"No checkpoint was saved yet. To start the training again: {_command()}"


def _newest_step(checkpoints: Path) -> int | None:
    try:
        return resume_from.newest_whole(str(checkpoints)).step
    except (ThriftuneError, OSError):
        return None


def _command_from(config: RunConfig, checkpoints: Path) -> str:
    """The command that resumes the run, with a copy of the run file that names the checkpoints."""
    place, command = _shown(checkpoints), ["pyflyte", *sys.argv[1:]]
    try:
        at = command.index("--config") + 1
        file = checkpoints.with_name("go-on.yaml")
        content = config.model_dump(mode="json", exclude_defaults=True)
        content.setdefault("checkpoints", {})["resume_from"] = place
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if redacted(text) != text:
            raise ValueError("A copy would lack the signatures of the run's URLs.")
        artifacts.write_text(file, text)
    except (ValueError, OSError):  # that, or the run file was given in another way, or the disk is full
        return f"set checkpoints.resume_from: {place} in the run file, and: {_command()}"
    command[at] = _shown(file)
    return f"{shlex.join(command)}   (checkpoints.resume_from: {place})"


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

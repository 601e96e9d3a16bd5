"""Ctrl-C or SIGTERM ends a local run within ten seconds, whatever it is doing, and says how to go on.

The main thread may be in a library's code for minutes, where no exception reaches it. So a thread of its own hears the
signal, gives a training notice to save a last checkpoint, ends every process of the run, and then this one. Meanwhile
the main thread stands still: it would start workers again, or end with an error of its own, which is not the news.
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

# What a shell adds to the number of the signal that ended a program.
_ENDED_BY = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Has the main thread stand still; neither torch nor flytekit uses it.
_HALT = signal.SIGUSR1
_HALT_S = 0.5
# For a training to end its step and save. After that whatever runs is killed, which takes the rest of ten seconds.
_NOTICE_S = 6.0
_KILL_S = 1.0
# What may take longer, as a store that does not answer or a file system that hangs, is left as it is.
_LIMIT_S = 9.0
# Removes shared memory and semaphores when the processes that used them are gone.
_CLEANER = "multiprocessing.resource_tracker"
_QUIET_CLEANER = f"ignore::UserWarning:{_CLEANER}"


@dataclass
class _Heard:
    """What the thread that hears must know of the rest of the process.

    Attributes:
        is_on: Whether it listens.
        signal_number: What came; 0: nothing.
        config: The training that goes on, or went on last.
        checkpoints: Where its checkpoints are.
        is_training: Whether one goes on.
        has_workers: Whether it goes on in other processes.
        ended: Set when it ended, on its own or after notice.
        halted: Set when the main thread stands still.
    """

    is_on: bool = False
    signal_number: int = 0
    config: RunConfig | None = None
    checkpoints: Path = Path()
    is_training: bool = False
    has_workers: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    halted: threading.Event = field(default_factory=threading.Event)


_heard = _Heard()


class EndsWhenInterrupted:
    """Mixed into a task class: the first task of a local run begins to listen."""

    def local_execute(self, ctx: Any, **kwargs: Any) -> Any:
        """Run it in this process."""
        if local_run.is_ours() and not _heard.is_on:
            local_run.begin()
            _listen()
        above: Any = super()
        return above.local_execute(ctx, **kwargs)


def is_heard() -> bool:
    """Whether signals are heard here: in the first process of a local run."""
    return _heard.is_on


@contextmanager
def training(config: RunConfig, *, in_workers: bool) -> Iterator[None]:
    """While a training goes on, an interruption gives it notice first, and afterwards its checkpoints are named.

    Args:
        config: The run.
        in_workers: Whether other processes train, and not this one.
    """
    if _heard.is_on:  # asked here, as Flyte's context is another one in another thread
        _heard.checkpoints = settings.result_place(config.name, "checkpoints")
    _heard.config, _heard.has_workers = config, in_workers
    _heard.ended.clear()
    _heard.is_training = True
    try:
        yield
    finally:
        _heard.is_training = False
        _heard.ended.set()
        if _heard.signal_number:  # the end comes, from the other thread; nothing is to be said of it here
            threading.Event().wait()


def left_to_parent() -> None:
    """In a worker: a Ctrl-C is for the process that started it, which gives notice. Without that one, this one ends.

    The kernel sends the same signal when the process that started this one dies.
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
    """Begin to hear."""
    _heard.is_on = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: None)
    signal.signal(_HALT, _halted)
    # Started here, it is quiet: what it finds left at the end is what it is there to remove.
    sys.warnoptions.append(_QUIET_CLEANER)
    resource_tracker.ensure_running()
    sys.warnoptions.remove(_QUIET_CLEANER)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(reader,), name="interruption", daemon=True).start()
    # The terminal sends a Ctrl-C to every process of the run. Those that are started from here on leave it to the
    # thread, which has not the main thread's mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _hear(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in _SIGNALS:
                _end(number)


def _end(number: int) -> None:
    """Give notice, end all processes of the run, say how to go on, and end."""
    _heard.signal_number = number
    logging.disable()  # what libraries say of the processes that go is no news
    until = time.monotonic() + _NOTICE_S
    threading.Thread(target=_end_late, args=(number,), name="interruption limit", daemon=True).start()
    try:
        _say(f"\nInterrupted by {signal.Signals(number).name}: ending, within ten seconds.")
        # Listed first: the children of a process that has ended are no longer found.
        processes = _children(recursive=True)
        if _heard.is_training and not _heard.has_workers:
            os.kill(os.getpid(), signal.SIGTERM)
            _heard.ended.wait(max(until - time.monotonic(), 0))
        _halt()
        if _heard.is_training and _heard.has_workers:
            _give_notice(until)
        _kill({*processes, *_children(recursive=True)})
        scratch.remove_own()
        scratch.remove_left(artifacts.unfinished(settings.local_root()))  # of its workers
        _say(_way_on())
    finally:
        os._exit(_ENDED_BY + number)


def _end_late(number: int) -> None:
    """End when something that is done before the end takes too long."""
    time.sleep(_LIMIT_S)
    try:
        _kill(set(_children(recursive=True)))
        place = f"; checkpoints, if there are any, are in {_shown(_heard.checkpoints)}" if _heard.config else ""
        _say(f"To begin again: {_command()}{place}")
    finally:
        os._exit(_ENDED_BY + number)


def _halt() -> None:
    """Have the main thread stand still, at the latest when it comes back from a library's code."""
    signal.pthread_kill(threading.main_thread().ident or 0, _HALT)
    _heard.halted.wait(_HALT_S)


def _halted(*_: object) -> None:
    """Stand still. What a worker of the training has to say, by a signal of its own, is still heard."""
    _heard.halted.set()
    threading.Event().wait()


def _give_notice(until: float) -> None:
    """Have workers save what they trained, as before a node goes away."""
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
    # Now, or its complaints would be the last words of the run; Python stops it at its own end only.
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
    with suppress(OSError):  # whoever read this may be gone, as tee is, which the terminal tells as well
        os.write(2, f"{redacted(text)}\n".encode())  # not by the log, whose lock the main thread may hold


def _command() -> str:
    return shlex.join(["pyflyte", *sys.argv[1:]])


def _way_on() -> str:
    """How to go on, in one line."""
    config = _heard.config
    if config is None:
        return f"To begin again: {_command()}"
    step = _newest_step(_heard.checkpoints)
    if step is not None:
        return f"To go on from step {step}: {_command_from(config, _heard.checkpoints)}"
    if config.checkpoints.resume_from:  # not looked at again: the store may be far away
        return f"No checkpoint was saved yet. To go on from {config.checkpoints.resume_from} again: {_command()}"
    return f"No checkpoint was saved yet. To begin the training again: {_command()}"


def _newest_step(checkpoints: Path) -> int | None:
    try:
        return resume_from.newest_whole(str(checkpoints)).step
    except (ThriftuneError, OSError):
        return None


def _command_from(config: RunConfig, checkpoints: Path) -> str:
    """The command that goes on: with a copy of the run file that names the checkpoints."""
    place, command = _shown(checkpoints), ["pyflyte", *sys.argv[1:]]
    try:
        at = command.index("--config") + 1
        file = checkpoints.with_name("go-on.yaml")
        content = config.model_dump(mode="json", exclude_defaults=True)
        content.setdefault("checkpoints", {})["resume_from"] = place
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if redacted(text) != text:
            raise ValueError("A copy would lack the signatures of the run's places.")
        artifacts.write_text(file, text)
    except (ValueError, OSError):  # that, or the run file came in another way, or the disk is full
        return f"set checkpoints.resume_from: {place} in the run file, and: {_command()}"
    command[at] = _shown(file)
    return f"{shlex.join(command)}   (checkpoints.resume_from: {place})"


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

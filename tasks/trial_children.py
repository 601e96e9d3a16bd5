"""Train the trials of a pack on one node, each in a process of its own with a device of its own.

The process here starts them, starts again those that die, answers which of them go on, and passes a SIGTERM on. It does
not train, and does not use a GPU.
"""

import logging
import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from flytekit import current_context
from flytekit.exceptions.user import FlyteRecoverableException

from tasks import checkpoints, interruption, settings, trial_child
from tasks.settings import PLATFORM
from tasks.trial_child import Start
from thriftune import distributed
from thriftune.strategies import STRATEGIES
from thriftune.sweeps.halving import Halving, losses_of
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import TrialJob
from thriftune.sweeps.slots import NO_GPU, Slots
from thriftune.sweeps.states import State
from thriftune.sweeps.words import Said, Words

logger = logging.getLogger("thriftune.tasks.trial_children")

_LOOK_SECONDS = 0.1
# After an error here, for what a process of a trial may need to save.
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Node:
    """What the trials of a pack have in common.

    Attributes:
        devices: For each trial at a time the GPU that it sees, as CUDA_VISIBLE_DEVICES; empty on a CPU.
        models: Base models on this disk, by key.
        datasets: Prepared datasets on this disk, by key.
        halving: How trials are stopped early, as JSON; empty if they are not.
    """

    devices: Sequence[str]
    models: dict[str, Path]
    datasets: dict[str, Path]
    halving: str = ""


@dataclass
class _Trial:
    """A trial, and the process that trains it.

    Attributes:
        job: What it trains.
        words: Folder for messages between its process and this one.
        process: Its process; None while it waits, and at its end.
        began: When that was started.
        seconds: Seconds of its processes before that.
        answered: Validations that it was answered about.
        outcome: What came of it; None before its end.
    """

    job: TrialJob
    words: Words
    process: SpawnProcess | None = None
    began: float = 0.0
    seconds: float = 0.0
    answered: int = 0
    outcome: Outcome | None = None

    @property
    def spent(self) -> float:
        """Seconds of all of its processes until now."""
        return self.seconds + (time.monotonic() - self.began if self.process else 0.0)


@dataclass
class _Notice:
    """Whether this process was told to end, and has passed that on."""

    was_given: bool = field(default=False)
    is_passed_on: bool = field(default=False)


class Children:
    """The processes of the trials of a pack.

    Args:
        jobs: The trials that are to train.
        node: What they have in common.
        halving: Decides which of them go on; None where all do.
        words: Folder for messages.
    """

    def __init__(self, jobs: Sequence[TrialJob], node: Node, halving: Halving | None, words: Path) -> None:
        self._node, self._halving = node, halving
        self._trials = {job.number: _Trial(job, Words(words / f"t{job.number}")) for job in jobs}
        self._slots = Slots([job.number for job in jobs], node.devices, PLATFORM.restarts)
        self._notice = _Notice()
        context = current_context()
        self._prefixes = (str(context.raw_output_prefix), context.output_metadata_prefix)

    def run(self) -> list[Outcome]:
        """Train until every trial has an outcome.

        Raises:
            FlyteRecoverableException: The node is going away, and some have none: another attempt goes on with those.
        """
        with self._listening(), self._ending():
            while self._running() or (self._slots.waiting and not self._notice.was_given):
                self._start_those_with_a_device()
                self._pass_notice_on()
                self._answer()
                sentinels = [trial.process.sentinel for trial in self._running() if trial.process]
                connection.wait(sentinels, _LOOK_SECONDS)
                for trial in self._running():
                    if trial.process and trial.process.exitcode is not None:
                        self._end(trial, trial.process.exitcode)
        outcomes = [trial.outcome for trial in self._trials.values() if trial.outcome is not None]
        left = len(self._trials) - len(outcomes)
        if left:
            raise FlyteRecoverableException(
                f"The node is going away: {left} of {len(self._trials)} trials have no result yet. Another attempt "
                "goes on with them from their checkpoints, and finds what the others made."
            )
        return outcomes

    def states(self) -> list[State]:
        """What each trial does now, for the page."""
        return [
            State(job.number, self._state(trial), *trial.words.validations(), trial.spent)
            for job, trial in ((trial.job, trial) for trial in list(self._trials.values()))
        ]

    def _state(self, trial: _Trial) -> str:
        if trial.outcome is not None:
            return f"{trial.outcome.status}{_because(trial.outcome)}"
        return "trains" if trial.process else "waits"

    def _running(self) -> list[_Trial]:
        return [trial for trial in self._trials.values() if trial.process is not None]

    def _start_those_with_a_device(self) -> None:
        while not self._notice.was_given and (given := self._slots.begin()) is not None:
            number, device = given
            self._start(self._trials[number], device)

    def _start(self, trial: _Trial, device: str) -> None:
        """Start the process of a trial: spawned, as a fork would inherit threads and what torch knows of devices."""
        job, node = trial.job, self._node
        trial.words.forget()
        start = Start(
            job,
            str(node.models[job.model]),
            str(node.datasets[job.dataset]),
            str(trial.words.folder),
            node.halving,
            trial.seconds,
            *self._prefixes,
        )
        trial.began = time.monotonic()
        environment = {**self._environment(job, device), "TMPDIR": str(_temporary(trial))}
        with settings.run_handed_down(start.words, environment):
            process = multiprocessing.get_context("spawn").Process(
                target=trial_child.main, args=(start,), name=f"trial {job.number}"
            )
            process.start()
        trial.process = process
        on = f"GPU {device}" if device else "the CPU"
        logger.info("Trial %d trains on %s, in process %s", job.number, on, process.pid)

    def _environment(self, job: TrialJob, device: str) -> dict[str, str]:
        """What the process of a trial finds in its environment: before it imports torch, which reads all of it."""
        threads = max(1, distributed.threads_of_node() // len(self._node.devices))
        seen = {"CUDA_VISIBLE_DEVICES": device} if device != NO_GPU else {}
        alone = distributed.alone() if STRATEGIES[job.plan.strategy].facts.is_distributed else {}
        return {"OMP_NUM_THREADS": str(threads), **seen, **alone}

    def _end(self, trial: _Trial, exit_code: int) -> None:
        """Take what a process left that has ended: the outcome of its trial, or a reason to start again."""
        trial.seconds, number = trial.spent, trial.job.number
        if trial.process is not None:
            trial.process.close()
        trial.process = None
        said = trial.words.heard() or Said(again=_death(exit_code))
        outcome = said.outcome
        if outcome is None and self._notice.was_given:  # no other one starts on its device
            return
        self._slots.leave(number, outcome.status if outcome else None)
        if outcome is None and self._slots.restart(number):
            logger.warning("Trial %d starts again, from its newest checkpoint if it has one: %s", number, said.again)
            return
        if outcome is None:
            steps, losses = trial.words.validations()
            error = f"started {PLATFORM.restarts + 1} times, the last time: {said.again}"
            outcome = Outcome(number, "failed", steps=steps, losses=losses, error=error)
        trial.outcome = replace(outcome, seconds=trial.seconds)
        shutil.rmtree(_temporary(trial), ignore_errors=True)  # or trials that waited would find no room on the disk
        if self._halving and outcome.training:
            self._halving.goes_on(number, losses_of(outcome))
        if outcome.status == "trained":
            checkpoints.remove_steps(trial.job.cache_key)
        logger.info("Trial %d %s after %.0f s%s", number, outcome.status, trial.seconds, _because(outcome))

    def _answer(self) -> None:
        """Answer the trials that ask whether they go on."""
        for trial in self._running() if self._halving else []:
            _, losses = trial.words.validations()
            if len(losses) != trial.answered and self._halving:
                goes_on = self._halving.goes_on(trial.job.number, losses)
                trial.words.answer(len(losses), goes_on=goes_on)
                trial.answered = len(losses)

    def _pass_notice_on(self) -> None:
        if self._notice.was_given and not self._notice.is_passed_on:
            self._notice.is_passed_on = True
            for trial in self._running():
                if trial.process:
                    trial.process.terminate()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Remember a SIGTERM, which a node gives before it goes away; in a local run it is handled elsewhere."""

        def hear(_number: int, _frame: Any) -> None:
            self._notice.was_given = True

        before = None if interruption.is_listening() else signal.signal(signal.SIGTERM, hear)
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Leave no process behind after an error here: each gets notice, and time to save."""
        try:
            yield
        finally:
            left = [trial.process for trial in self._running() if trial.process]
            for process in left:
                process.terminate()
            until = time.monotonic() + _END_SECONDS
            for process in left:
                process.join(max(0.0, until - time.monotonic()))
                process.kill()
                process.join()


def _temporary(trial: _Trial) -> Path:
    """Folder for the temporary files of a trial's processes, of which a later one finds what an earlier one left."""
    folder = trial.words.folder / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _death(exit_code: int) -> str:
    """Why a process ended that said nothing."""
    if exit_code == -signal.SIGKILL:
        return "its process was killed (exit -9), as the kernel does when the node's memory runs out"
    if exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}"
    return f"its process ended with status {exit_code}, without a word"


def _because(outcome: Outcome) -> str:
    return f": {outcome.error}" if outcome.error else ""

"""The process of one trial of a pack: it trains the trial on its own device, and says what came of it.

Other trials share the node, not the process: what ends this one leaves the others alone.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flytekit.bin.entrypoint import setup_execution
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, interruption, live, log, trial_results
from tasks.training_body import Work, train
from tasks.transfer import transient_errors_retried
from thriftune.config import RunConfig
from thriftune.disk import writing_to
from thriftune.errors import StoppedEarlyError, UserError, in_a_line
from thriftune.sweeps.outcomes import Outcome, Status
from thriftune.sweeps.packs import TrialJob
from thriftune.sweeps.words import Said, Words
from thriftune.training.result import Validation

logger = logging.getLogger("thriftune.tasks.trial_child")

# An answer takes a tenth of a second. Without one, as from a parent that is suspended, the training goes on.
_ANSWER_SECONDS = 30.0
_LONGEST_ERROR = 500


@dataclass(frozen=True)
class Start:
    """What the process of a trial is started with.

    Attributes:
        job: The trial.
        model: The base model, on this disk.
        dataset: The prepared dataset, on this disk.
        words: Folder for messages between this process and its parent.
        halving: How trials are stopped early, as JSON; empty if they are not.
        seconds_before: Seconds that earlier processes of the trial had its device.
        raw_output_prefix: Where Flyte wants the outputs of the task.
        metadata_prefix: Where it keeps the task's metadata.
    """

    job: TrialJob
    model: str
    dataset: str
    words: str
    halving: str
    seconds_before: float
    raw_output_prefix: str
    metadata_prefix: str | None


def main(start: Start) -> None:
    """Train a trial, in a process that was started for it.

    Args:
        start: What it is started with.
    """
    _end_with_parent()
    context = setup_execution(
        raw_output_data_prefix=start.raw_output_prefix, output_metadata_prefix=start.metadata_prefix
    )
    with context:
        log.say_whose(f"trial {start.job.number}")
        words = Words(Path(start.words))
        words.say(_said(start, words))


class _Asking:
    """Tells the parent of validations, and asks it whether the trial goes on where trials are compared.

    Args:
        words: The folder for messages.
        is_compared: Whether the parent answers.

    Attributes:
        told: The validations so far.
    """

    told: tuple[Validation, ...]

    def __init__(self, words: Words, *, is_compared: bool) -> None:
        self._words, self._is_compared = words, is_compared
        self.told = ()

    def __call__(self, validations: Sequence[Validation]) -> bool:
        """Whether the trial goes on."""
        self.told = tuple(validations)
        self._words.tell(validations)
        return not self._is_compared or self._words.answered(len(validations), _ANSWER_SECONDS)

    def outcome(self, number: int, status: Status, error: str = "") -> Outcome:
        """What came of a trial that has no result."""
        steps, losses = (tuple(getattr(one, name) for one in self.told) for name in ("step", "loss"))
        return Outcome(number, status, steps=steps, losses=losses, error=error)


def _said(start: Start, words: Words) -> Said:
    """Train, and turn whatever ends that into what the parent has to know."""
    number, began = start.job.number, time.monotonic()
    asking = _Asking(words, is_compared=bool(start.halving))
    try:
        with writing_to(Path(), f"training trial {number}"):
            return Said(_trained(start, asking))
    except StoppedEarlyError as error:
        seconds = start.seconds_before + time.monotonic() - began
        outcome = replace(asking.outcome(number, "stopped"), seconds=seconds)
        try:
            trial_results.remember_stopped(start.job.cache_key, start.halving, outcome)
        except (FlyteRecoverableException, UserError) as unknown:
            logger.warning("That it was stopped is not written down, and asked again later: %s", in_a_line(unknown))
        logger.info("%s", error.problems[0])
        return Said(outcome)
    except UserError as error:
        logger.error("%s", error)
        logger.debug("The trial failed", exc_info=True)
        return Said(asking.outcome(number, "failed", _in_a_line(error)))
    except FlyteRecoverableException as error:  # the node goes away, or the store does not answer
        cause = error.__cause__ or error
        logger.warning("The trial ended before its end: %s", in_a_line(cause, _LONGEST_ERROR))
        logger.debug("It ended so", exc_info=True)
        return Said(again=in_a_line(cause, _LONGEST_ERROR))
    except Exception as error:
        logger.exception("The trial ended before its end")
        return Said(again=in_a_line(error, _LONGEST_ERROR))


def _trained(start: Start, asking: _Asking) -> Outcome:
    job = start.job
    config, key = RunConfig.model_validate_json(job.config), job.cache_key
    model, dataset = FlyteDirectory(start.model), FlyteDirectory(start.dataset)
    with (
        trial_results.held_here(key),
        checkpoints.attempt(key),
        transient_errors_retried(),
        live.watching(config, job.plan, key) as lines,
    ):
        work = Work(config, job.plan, key, job.record, model, dataset, lines, asking)
        made = train(work, trial_results.kept_by_trial(job.number, start.seconds_before))
    return trial_results.outcome_of(job.number, made.model, made.training, 0.0)


def _in_a_line(error: UserError) -> str:
    text = " ".join(" ".join(map(str, error.problems)).split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, as workers of a training do, and end when it is gone."""
    from torch import multiprocessing as of_torch

    interruption.left_to_parent()
    of_torch._prctl_pr_set_pdeathsig(signal.SIGINT)  # type: ignore[attr-defined]  # noqa: SLF001 - as its own workers
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed before the kernel knew of this
        os._exit(1)

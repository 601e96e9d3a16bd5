"""Where trials keep their results, and what earlier runs made of them: in a pod by the index, here by the local cache.

A trial that was stopped early leaves a file beside its checkpoints: by the same halving it is not trained again, and
without it, it goes on from there.
"""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flytekit import current_context
from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, results, settings
from tasks.training_body import Keeps, Work
from tasks.transfer import transient_errors_retried, uri_of
from thriftune import artifacts, damage
from thriftune.checkpoints.errors import LeaseError
from thriftune.sweeps import outcome_json
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import TrialJob
from thriftune.training.result import TrainingResult

logger = logging.getLogger("thriftune.tasks.trial_results")

# Fact in the index that says what came of a trial.
OUTCOME = "outcome"
_STOPPED = "stopped.json"


def kept_by_trial(number: int, seconds_before: float = 0.0) -> Callable[[Work], Keeps]:
    """Where a trial keeps what it makes: a later local run finds it too.

    Args:
        number: Number of the trial.
        seconds_before: Seconds that earlier processes of the trial had its devices.
    """
    began = time.monotonic() - seconds_before

    def keeps(work: Work) -> Keeps:
        def remember(model: FlyteDirectory, result: TrainingResult) -> None:
            text = outcome_json.to_json(outcome_of(number, model, result, time.monotonic() - began))
            results.remember(work.record, model, facts={OUTCOME: text})
            if settings.is_local():
                artifacts.write_text(_file_of(work.cache_key), text)

        there = checkpoints.checkpoint_location(work.config.name, work.cache_key, outlives=True)
        return Keeps(_place_of(work.cache_key), there, remember)

    return keeps


def outcome_of(number: int, model: FlyteDirectory, result: TrainingResult, seconds: float) -> Outcome:
    """What came of a trial that trained.

    Args:
        number: Number of the trial.
        model: What it made.
        result: What was measured.
        seconds: Seconds that it had its devices.
    """
    return Outcome(number, "trained", uri_of(model), result, seconds=seconds)


def found(number: int, cache_key: str, record: str, halving: str = "") -> Outcome | None:
    """What came of a trial before; None if it is to train.

    Args:
        number: Its number in this sweep.
        cache_key: What it is known by.
        record: URL of its record in the index; empty in a local run.
        halving: How trials are stopped early, as JSON; empty if they are not.

    Raises:
        ResultError: The index may not be read.
        FlyteRecoverableException: The store does not answer.
    """
    outcome = _finished(cache_key, record)
    if outcome is None and halving:
        return stopped_before(number, cache_key, halving)
    if outcome is None:
        return None
    is_of_this = not settings.is_local() and not settings.is_of_another_run(outcome.model)
    return replace(outcome, number=number, is_served=not is_of_this)


def found_job(job: TrialJob, halving: str) -> Outcome | None:
    """What came of a trial of a pack before; None if it is to train.

    Args:
        job: The trial.
        halving: As in `found`.
    """
    return found(job.number, job.cache_key, job.record, halving)


def stopped_before(number: int, cache_key: str, halving: str) -> Outcome | None:
    """What came of a trial that was stopped early by the same halving; None if it was not.

    Args:
        number: Its number in this sweep.
        cache_key: What it is known by.
        halving: How trials are stopped early, as JSON.

    Raises:
        FlyteRecoverableException: The store does not answer.
    """
    with transient_errors_retried():
        content = checkpoints.trial_store(cache_key).get_bytes(_STOPPED)
    try:
        kept = json.loads(content or b"{}")
    except ValueError:  # half of it was written
        return None
    outcome = outcome_json.from_json(kept.get(OUTCOME, "")) if kept.get("halving") == halving else None
    is_of_this = not settings.is_local() and kept.get("by") == _execution()  # which pays for what it stopped itself
    return outcome and replace(outcome, number=number, is_served=not is_of_this)


def remember_stopped(cache_key: str, halving: str, outcome: Outcome) -> None:
    """Write down that a trial was stopped early.

    Args:
        cache_key: What it is known by.
        halving: How trials are stopped early, as JSON.
        outcome: What came of it.
    """
    text = json.dumps({"halving": halving, OUTCOME: outcome_json.to_json(outcome), "by": _execution()})
    with transient_errors_retried():
        checkpoints.trial_store(cache_key).put_bytes(_STOPPED, text.encode())


@contextmanager
def held_here(cache_key: str) -> Iterator[None]:
    """Refuse a trial that another process of this machine trains: both would write the same checkpoints.

    In a pod the lease of its checkpoints does that.

    Args:
        cache_key: What it is known by.

    Raises:
        LeaseError: Another process trains it.
    """
    if not settings.is_local():
        yield
        return
    file = _place_of(cache_key).with_suffix(".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the process ends, however it ends
        except BlockingIOError:
            message = "another run on this machine trains the same trial at this moment."
            remedy = "Wait until it has ended, or end it, and start this one again."
            raise LeaseError.single("checkpoints", str(file), message, remedy) from None
        yield


def _finished(cache_key: str, record: str) -> Outcome | None:
    if not settings.is_local():
        made = results.made_by(record) if record else None
        return outcome_json.from_json(str(made.facts.get(OUTCOME, ""))) if made else None
    file = _file_of(cache_key)
    if not file.is_file() or not damage.is_reusable(_place_of(cache_key)):
        return None
    return outcome_json.from_json(file.read_bytes())


def _execution() -> str:
    return str(current_context().execution_id.name)


def _place_of(cache_key: str) -> Path:
    return settings.cache_path("trial", artifacts.key_of(cache_key))


def _file_of(cache_key: str) -> Path:
    return _place_of(cache_key).with_suffix(".json")

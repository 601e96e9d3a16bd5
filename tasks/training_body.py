"""What every process of a training does, whether the training is a run of its own or a trial of a sweep."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, ledger, live, results, settings
from tasks.transfer import download, download_once_per_node, transient_errors_retried, upload
from thriftune import distributed
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import RunConfig
from thriftune.inference.parity import saved
from thriftune.methods import METHODS
from thriftune.models import fetching
from thriftune.models.adapter_weights import RESUME_FROM
from thriftune.strategies import STRATEGIES
from thriftune.training.fit import Inputs, fit
from thriftune.training.result import Asked, GoesOn, TrainingResult
from thriftune.training_plan import TrainingPlan


class Trained(NamedTuple):
    """A trained model or adapter, and what was measured while training it."""

    model: FlyteDirectory
    training: TrainingResult


@dataclass(frozen=True)
class Work:
    """One training.

    Attributes:
        config: The run.
        plan: Its plan.
        cache_key: What the training is known by.
        record: URL to write the place of the result to; empty in a local run.
        model: The base model.
        dataset: The prepared dataset.
        lines: Folder for the lines that it tells of itself.
        goes_on: Told of each validation, it says whether the training goes on; None to be told of none.
    """

    config: RunConfig
    plan: TrainingPlan
    cache_key: str
    record: str
    model: FlyteDirectory
    dataset: FlyteDirectory
    lines: Path
    goes_on: GoesOn | None = None


@dataclass(frozen=True)
class Keeps:
    """Where a training keeps what it makes.

    Attributes:
        place: Where its result is written to.
        checkpoints: Where its checkpoints are.
        remember: Writes down what it made, which is uploaded by then.
    """

    place: Path
    checkpoints: CheckpointLocation
    remember: Callable[[FlyteDirectory, TrainingResult], None]

    @classmethod
    def of_run(cls, work: Work) -> Self:
        """Where a training keeps it that is a run of its own.

        Args:
            work: The training.
        """
        config = work.config
        place = settings.result_path(config.name, METHODS[work.plan.method].facts.result)
        there = checkpoints.checkpoint_location(config.name, work.cache_key)

        def remember(model: FlyteDirectory, _: TrainingResult) -> None:
            results.remember(work.record, model, facts=Asked.of(config).facts)

        return cls(place, there, remember)


def train(work: Work, keeps: Callable[[Work], Keeps] = Keeps.of_run) -> Trained:
    """Train by the method of the run, under the strategy of its plan. Runs in each process of the training.

    Args:
        work: The training.
        keeps: Says where it keeps what it makes.
    """
    config, plan, lines = work.config, work.plan, work.lines
    rank = STRATEGIES[plan.strategy].join(plan)
    if rank.is_main:
        live.say_joined(lines)
    kept = keeps(work)
    began, start = time.monotonic(), start_of(config)
    model_dir, dataset_dir = download_once_per_node(work.model, work.dataset)
    own = download(start) if start else None
    fetching_seconds = time.monotonic() - began
    inputs = Inputs(config, plan, model_dir, dataset_dir, own, kept.checkpoints, fetching_seconds, lines, work.goes_on)
    result = fit(inputs, kept.place)
    if rank.is_main:
        result = compared(inputs, kept.place, result)
    output = upload(kept.place) if rank.is_main else FlyteDirectory(str(kept.place))
    if rank.is_main:  # after the upload: the model must not be lost if the page fails
        result = live.with_hours(plan, lines, result)
        kept.remember(output, result)
        checkpoints.mark_done(work.cache_key)
        ledger.remember(config, plan, model_dir, result, fetching_seconds)
        live.finish(config, plan, lines, result)
    distributed.leave()
    return Trained(model=output, training=result)


def compared(inputs: Inputs, place: Path, result: TrainingResult) -> TrainingResult:
    """Compare a trained model with its base, before it is uploaded. An adapter has no tokenizer and no settings.

    Args:
        inputs: The inputs of the training.
        place: Its result.
        result: What was measured.

    Returns:
        That, with a remark if the result is not what was trained: it is kept, and not published.
    """
    config = inputs.config
    if not METHODS[config.method].facts.trains_weights:
        return result
    added, trusts = config.partial_or_default.add_layers, config.model.trust_remote_code
    found = saved.compare(inputs.model_dir, place, inputs.dataset_dir, added_layers=added, trust_remote_code=trusts)
    return replace(result, remarks=[*result.remarks, saved.sentence_of(found)]) if found else result


def start_of(config: RunConfig) -> FlyteDirectory | None:
    """The adapter to continue; None if a run has none.

    Args:
        config: The run.
    """
    start = config.lora_or_default.resume_from
    return FlyteDirectory(start) if start else None


def start_version(config: RunConfig) -> str:
    """The present version of the adapter to continue, which its URL does not show; empty if a run has none.

    Args:
        config: The run.
    """
    start = config.lora_or_default.resume_from
    if not start:
        return ""
    with transient_errors_retried():
        return fetching.version(start, field=RESUME_FROM)

"""Optimizer steps, warmup and progress lines: whether the numbers of a run make sense together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from thriftune.batching import steps_per_epoch, total_steps
from thriftune.config import RunConfig, TrainingConfig
from thriftune.data.report import number, percent
from thriftune.errors import Problem
from thriftune.preflight.rows import Tried
from thriftune.preflight.sampling import Sample


@dataclass(frozen=True)
class Steps:
    """How long a run trains.

    Attributes:
        rows: Token rows to train on.
        is_exact: Whether they were counted; else they are estimated from the first rows.
        per_epoch: Optimizer steps of a pass over them.
        total: Optimizer steps.
        warmup: Steps in which the learning rate rises.
    """

    rows: int
    is_exact: bool
    per_epoch: int
    total: int
    warmup: int


def count(rows: int, training: TrainingConfig, *, is_exact: bool = True) -> Steps:
    """The steps of a run, as transformers' Trainer counts them.

    Args:
        rows: Token rows to train on, at least one.
        training: The training section.
        is_exact: Whether they were counted.

    Returns:
        The steps: the last batch of an epoch may be smaller, and `max_steps` decides alone where it is given.

    Source:
        transformers 5.23, Trainer.set_initial_training_values and TrainingArguments.get_warmup_steps
    """
    per_epoch = steps_per_epoch(rows, training.global_batch)
    total = total_steps(per_epoch, training.epochs, training.max_steps)
    return Steps(rows, is_exact, per_epoch, total, math.ceil(total * training.warmup_share))


def of_sample(tried: Tried, sample: Sample, config: RunConfig) -> Steps | None:
    """The steps of a run, from its first rows.

    Args:
        tried: The converted rows.
        sample: The sampled rows.
        config: The run.

    Returns:
        The steps; estimated if the sample is only a part of the data. None if no row trains, or if the number of
        rows is not known.
    """
    token_rows, used = tried.train.token_rows, sample.used_rows(config.data)
    if not token_rows:
        return None
    if sample.is_whole:
        return count(token_rows, config.training)
    if used is None:
        return None
    of_task = sum(used[: len(config.data.task_sources)])  # of which some are held out
    training = sum(used) - config.data.validation_share * of_task
    return count(max(1, round(token_rows / tried.train.rows * training)), config.training, is_exact=False)


def check(steps: Steps, training: TrainingConfig) -> Iterator[Problem]:
    """The numbers that do not make sense together.

    Args:
        steps: How long the run trains.
        training: Its training section.
    """
    about = "" if steps.is_exact else "about "
    if steps.rows < training.global_batch:
        yield Problem.coded(
            "fewer-rows-than-batch",
            "training.global_batch",
            training.global_batch,
            f"there are {about}{number(steps.rows)} rows to train on, so every step sees all of them.",
            "Use a smaller batch, or more rows.",
        )
    yield from _passes(steps, training, about)
    if steps.warmup >= steps.total:
        yield Problem.coded(
            "warmup-covers-all-steps",
            "training.warmup_share",
            training.warmup_share,
            f"is {steps.warmup} of {steps.total} step{'s' if steps.total > 1 else ''}, so the learning rate reaches "
            f"{percent(steps.warmup / (steps.warmup + 1))} of its peak.",
            "Use 0, or train longer.",
        )
    if training.log_every > steps.total:
        yield Problem.coded(
            "first-step-logged-only",
            "training.log_every",
            training.log_every,
            f"the run has {about}{number(steps.total)} steps, so only the first is logged.",
            f"Use {max(1, steps.total // 10)}.",
        )


def _passes(steps: Steps, training: TrainingConfig, about: str) -> Iterator[Problem]:
    """More passes over the data than were asked for."""
    passes = steps.total / steps.per_epoch
    if training.max_steps and passes > max(1.0, training.epochs):
        yield Problem.coded(
            "max-steps-beyond-epochs",
            "training.max_steps",
            training.max_steps,
            f"a pass over the data is {about}{number(steps.per_epoch)} steps, so they go over it {passes:.1f} times; "
            f"training.epochs = {training.epochs:g} is ignored.",
            f"Remove it to train {number(math.ceil(training.epochs * steps.per_epoch))} steps.",
        )

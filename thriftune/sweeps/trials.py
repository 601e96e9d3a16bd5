"""Which trials of a sweep come next, in how many rounds."""

import math
from collections.abc import Mapping
from typing import Any

from thriftune.config.sweep import SweepRun
from thriftune.config.trials import given_settings, number_of_trials
from thriftune.sweeps.proposing import Told, propose
from thriftune.sweeps.rounds import SoFar


def round_size(run: SweepRun) -> int:
    """How many trials are started before anything is decided: by what came of them, or by what is left of the budget.

    Args:
        run: The sweep.
    """
    sweep, count = run.sweep, number_of_trials(run)
    decides = sweep.sampler == "tpe" or sweep.budget is not None
    return min(count, sweep.parallel) if decides and sweep.parallel else count


def number_of_rounds(run: SweepRun) -> int:
    """In how many rounds the trials are started, if none is left out."""
    return math.ceil(number_of_trials(run) / round_size(run))


def rounds_after(run: SweepRun, before: SoFar) -> int:
    """In how many more rounds the trials are started that were not planned yet.

    Args:
        run: The sweep.
        before: What came of the rounds before.
    """
    left = number_of_trials(run) - len(before.tried) - len(before.left_out)
    return math.ceil(left / round_size(run))


def next_trials(run: SweepRun, before: SoFar) -> Mapping[int, dict[str, Any]]:
    """What the trials of the next round set, by their numbers; none if all were started.

    Args:
        run: The sweep.
        before: What came of the rounds before.
    """
    first, size = len(before.tried) + len(before.left_out), round_size(run)
    if run.sweep.sampler == "tpe":
        settings = propose(run, told_of(before), is_higher_better=before.is_higher_better)
    elif run.sweep.ranges:
        settings = propose(run, {})[first : first + size]
    else:
        settings = given_settings(run)[first : first + size]
    return dict(enumerate(settings, start=first))


def told_of(before: SoFar) -> dict[int, Told]:
    """What the sampler is told of the trials before.

    Args:
        before: What came of them.
    """
    told = {one.number: Told() for one in before.left_out}
    for one in before.tried:
        outcome = one.outcome
        is_stopped = outcome.status == "stopped"
        score = one.score if one.score is not None and math.isfinite(one.score) else None
        steps, losses = (outcome.steps, outcome.losses) if is_stopped else ((), ())
        told[outcome.number] = Told(score if outcome.status == "trained" else None, steps, losses)
    return told

"""What the choices that fit are expected to take on spot nodes, and which of them would hardly ever finish there."""

import math
from collections.abc import Sequence
from dataclasses import replace

from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.methods import METHODS
from thriftune.models.architecture import Architecture
from thriftune.planning.choices import Choice, Fitting, Refusal
from thriftune.planning.saving import upload_seconds, write_seconds
from thriftune.planning.spot import SpotRun, best_interval, expected, rate_of
from thriftune.planning.time.run import FETCH, LOAD, START
from thriftune.training_plan import RunTime, SpotTime

_HOUR = 3600.0
_MINUTES = 60.0
_GIB = 2**30
_OF_THE_NODE = "the catalogue's, of this node type"


def finishing(
    config: RunConfig, architecture: Architecture, found: Sequence[Fitting]
) -> tuple[list[Fitting], list[Refusal]]:
    """Choices that finish on spot nodes, with what they are expected to take; and why the others do not.

    Nothing is known of a choice whose time, number of steps or rate of interruptions is not known.

    Args:
        config: The run.
        architecture: Its model.
        found: Choices that fit, from the spot market or not.
    """
    trained = METHODS[config.method].trained_parameters(config, architecture)
    kept, refused = [], []
    for one in found:
        choice, time = one.choice, one.time
        if not choice.offer.is_spot or time is None or not time.steps or choice.offer.interruptions_per_month is None:
            kept.append(one)
            continue
        size = choice.strategy.checkpoint_bytes(trained, choice.precision, choice.settings, choice.nodes)
        try:
            kept.append(replace(one, spot=expectation(config, choice, time, size)))
        except ConfigError as error:
            (problem,) = error.problems
            reason = f"fits, but {problem.message} {problem.remedy.rstrip('.')}"
            refused.append(Refusal(choice.machines, choice, reason, math.inf, has_room=True, remedy=problem.remedy))
    return kept, refused


def expectation(config: RunConfig, choice: Choice, time: RunTime, size: int) -> SpotTime:
    """What a choice is expected to take on spot nodes.

    Every interruption counts as one without a notice, which loses what was trained since the last checkpoint. Training
    counts as standing still until a checkpoint is in the store, where it really goes on while that is uploaded.

    Args:
        config: The run.
        choice: The machines, and how they are used.
        time: Its time, with a number of steps.
        size: Bytes of a checkpoint that the node with the most uploads.

    Raises:
        ConfigError: The run would hardly ever finish, with the arithmetic.
    """
    often, network = choice.offer.interruptions_per_month or 0.0, choice.offer.network_gbps
    moving = upload_seconds(size, network) if network else 0.0
    saving = write_seconds(size) + moving
    starting = sum(time.beside.get(part, 0.0) for part in (START, FETCH, LOAD)) + moving  # a checkpoint is fetched too
    trained = time.steps * time.step.seconds + sum(time.beside.values()) - starting + moving
    run = SpotRun(
        hours=trained / _HOUR,
        rate=rate_of(often, choice.nodes),
        startup_hours=starting / _HOUR,
        interval_hours=_interval(config, time, trained) / _HOUR,
        checkpoint_hours=saving / _HOUR,
    )
    found = expected(run, choice.price_per_hour)
    best = replace(run, interval_hours=max(best_interval(run), time.step.seconds / _HOUR))
    return SpotTime(
        billed_hours=found.billed_hours,
        interruptions=found.interruptions,
        cost=found.cost,
        every_minutes=_MINUTES * run.interval_hours,
        best_minutes=_MINUTES * best.interval_hours,
        best_cost=expected(best, choice.price_per_hour).cost,
        saving_seconds=saving,
        saved_gib=size / _GIB,
        interruptions_per_month=often,
        rate_from=_OF_THE_NODE,
        has_spot_price=choice.offer.spot_price_per_hour is not None,
    )


def _interval(config: RunConfig, time: RunTime, trained: float) -> float:
    """Seconds of training between two checkpoints: by minutes or by steps, at least a step and at most the run."""
    checkpoints, step = config.checkpoints, time.step.seconds
    seconds = max(step, _MINUTES * checkpoints.every_minutes)
    if checkpoints.every_steps:
        seconds = min(seconds, checkpoints.every_steps * step)
    return min(seconds, trained)

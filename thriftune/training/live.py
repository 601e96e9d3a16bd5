"""How far a training is: what the page of a training says while it goes on, from its lines and its plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from thriftune.gpu_hours import GpuHours
from thriftune.training.attempts_made import Made, attempts_of, devices_of, hours_of
from thriftune.training.lines import ENDS, Line, last_value
from thriftune.training_plan import RunTime, TrainingPlan

_SECONDS_PER_HOUR = 3600.0
# 90 % of what is distributed normally lies within so many standard deviations.
_DEVIATIONS = 1.645
# The least error of the time that is left, as a share: validations and checkpoints come at intervals.
_LEAST_ERROR = 0.03
# With fewer measured stretches of steps, the plan's error counts.
_FEWEST = 4
# Steps are taken together to so many stretches, whose speeds are compared.
_STRETCHES = 40

_SAID = {
    "began": "The task has begun.",
    "loading": "Loading the model.",
    "interrupted": "Interrupted.",
    "again": "Starting again.",
    "stopped": "Stopped.",
    "failed": "Failed.",
    "finished": "Finished.",
}


@dataclass(frozen=True)
class Remaining:
    """Seconds until the last step.

    Attributes:
        seconds: What is expected.
        low: The least that is likely; the truth lies between this and `high` in 90 % of the cases.
        high: The most that is likely.
        leans_on: Where this comes from, as text.
    """

    seconds: float
    low: float
    high: float
    leans_on: str


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        status: What it does now, as a sentence.
        is_over: Whether nothing more comes from its present attempt.
        step: Optimizer steps done, of those that count.
        steps: All steps; 0 where that is not known yet.
        seconds: Since its first attempt began.
        tokens_per_second: Of the last stretch of steps, over all ranks; None before there is one.
        seconds_per_step: Of the same steps.
        remaining: Until the last step; None where nothing is known.
        hours: GPU-hours so far; None before an attempt began.
        cost: Price of the nodes so far, in the plan's currency.
        attempts: Number of attempts.
    """

    status: str
    is_over: bool
    step: int
    steps: int
    seconds: float
    tokens_per_second: float | None
    seconds_per_step: float | None
    remaining: Remaining | None
    hours: GpuHours | None
    cost: float
    attempts: int


def progress_of(plan: TrainingPlan, lines: Sequence[Line], now: float) -> Progress:
    """How far a training is.

    Args:
        plan: Its plan.
        lines: Its lines.
        now: The present time, in seconds since 1970.
    """
    made = attempts_of(lines, now)
    own = _of_last_attempt(lines)
    last = next((line for line in reversed(own) if line.kind in ENDS), None)
    steps = int(last_value(lines, "steps") or 0) or (plan.time.steps if plan.time else 0)
    step = max((line.step for line in own if line.kind in ("training", "step")), default=0)
    hours = hours_of(plan, lines, now)
    speeds = _stretches(own)
    recent = speeds[-1] if speeds else None
    return Progress(
        status=_status(own, last, step, steps),
        is_over=last is not None,
        step=step,
        steps=steps,
        seconds=max(0.0, (last.at if last else now) - lines[0].at) if lines else 0.0,
        tokens_per_second=recent.tokens / recent.busy if recent and recent.busy else None,
        seconds_per_step=recent.busy / recent.steps if recent else None,
        remaining=None if last else _remaining(plan.time, made, speeds, steps - step),
        hours=hours,
        cost=hours.used / devices_of(plan) * plan.price_per_hour if hours else 0.0,
        attempts=len(made),
    )


@dataclass(frozen=True)
class _Stretch:
    """Some steps in a row.

    Attributes:
        steps: Their number.
        seconds: From the end of the step before them to the end of the last, with validations and checkpoints.
        busy: Seconds of the steps alone.
        tokens: Tokens trained on.
    """

    steps: int
    seconds: float
    busy: float
    tokens: float


def _stretches(lines: Sequence[Line]) -> list[_Stretch]:
    """Stretches of the steps after the first one of an attempt, in which libraries warm up."""
    told = [line for line in lines if line.kind == "step" and "busy_seconds" in line.values]
    every = max(1, len(told) // _STRETCHES)
    chosen = told[::-1][::every][::-1]
    return [
        _Stretch(
            b.step - a.step,
            b.at - a.at,
            b.values["busy_seconds"] - a.values["busy_seconds"],
            b.values.get("tokens", 0.0) - a.values.get("tokens", 0.0),
        )
        for a, b in pairwise(chosen)
        if b.step > a.step
    ]


def _remaining(time: RunTime | None, made: Sequence[Made], speeds: Sequence[_Stretch], steps: int) -> Remaining | None:
    """The time that is left: by the plan at first, by what was measured as soon as that says more."""
    if steps <= 0:
        return None
    planned = _by_plan(time, made, steps)
    if len(speeds) < _FEWEST:
        return planned
    done = sum(stretch.steps for stretch in speeds)
    mean = sum(stretch.seconds for stretch in speeds) / done
    each = [(stretch.steps, stretch.seconds / stretch.steps) for stretch in speeds]
    spread = math.sqrt(sum(weight * (one - mean) ** 2 for weight, one in each) / done)
    # The mean of what was measured is off, and the mean of what comes will differ from it.
    come = max(1.0, steps * len(speeds) / done)
    error = _LEAST_ERROR * mean + _DEVIATIONS * spread * math.sqrt(1 / (len(speeds) - 1) + 1 / come)
    low, high = max(0.0, mean - error), mean + error
    return Remaining(steps * mean, steps * low, steps * high, f"measured: {done:,} steps")


def _by_plan(time: RunTime | None, made: Sequence[Made], steps: int) -> Remaining | None:
    """What the plan says of the time that is left; None if it does not know."""
    if time is None:
        return None
    beside = sum(time.beside.values())
    spent = made[-1].ended - made[-1].began if made and made[-1].trains_since is None else beside
    left, step = max(0.0, beside - spent), steps * time.step.seconds
    low, high = (left + factor * step for factor in (time.error[0], time.error[1]))
    return Remaining(left + step, low, high, f"the plan: {time.leans_on}")


def _of_last_attempt(lines: Sequence[Line]) -> Sequence[Line]:
    """The lines since the last attempt began."""
    starts = [number for number, line in enumerate(lines) if line.kind in ("began", "loading")]
    last = starts[-1] if starts else 0
    # A task's own first line belongs to the first attempt of its processes.
    if len(starts) > 1 and lines[last].kind == "loading" and lines[starts[-2]].kind == "began":
        last = starts[-2]
    return lines[last:]


def _status(own: Sequence[Line], last: Line | None, step: int, steps: int) -> str:
    """What a training does now."""
    if last is not None:
        return f"{_SAID[last.kind]} {last.text}".strip()
    if not own:
        return "Waiting for the nodes of the job."
    if any(line.kind == "training" for line in own):
        if steps and step >= steps:
            return "All steps are done; the result is measured, saved and uploaded."
        if step == next(line.step for line in own if line.kind == "training"):
            return "Loaded; the first step is on its way."
        return f"Training: step {step:,} of {steps:,}." if steps else f"Training: step {step:,}."
    newest = next((line.kind for line in reversed(own) if line.kind != "alive"), "began")
    return _SAID.get(newest, "")

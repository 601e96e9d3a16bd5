"""The attempts at a training, and its GPU-hours, from the lines that it left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from thriftune.gpu_hours import GpuHours
from thriftune.training.lines import ENDS, Line, last_value
from thriftune.training_plan import TrainingPlan

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Made:
    """One attempt at a training: from its task's beginning, or from the restart of its processes, to its end.

    Attributes:
        began: When it began, in seconds since 1970.
        ended: When it ended, or the last moment that is known of it.
        devices: Devices that it held.
        holds_on: Whether it began in the task of the attempt before it, so that devices were held in between.
        trains_since: When its first step was next; None if it did not get there.
        resumed_at: Step that it began at, as far as it got there.
        reached: When each step that is known was done, in the order of time.
        saved: Last step with a checkpoint, or the one that it began at.
        is_over: Whether it said that it ended.
        has_finished: Whether the training has its result.
    """

    began: float
    ended: float
    devices: float
    holds_on: bool
    trains_since: float | None
    resumed_at: int
    reached: tuple[tuple[int, float], ...]
    saved: int
    is_over: bool
    has_finished: bool

    def kept_until(self, step: int) -> float | None:
        """When it had done what is kept of it; None if nothing is.

        Args:
            step: Step that the attempt after it began at.
        """
        if self.trains_since is None or step <= self.resumed_at:
            return None
        return next((at for done, at in self.reached if done >= step), self.ended)


def attempts_of(lines: Sequence[Line], now: float | None = None) -> list[Made]:
    """The attempts that lines tell of, in order.

    Args:
        lines: The lines of a training.
        now: The present time, where the last attempt still goes on; None where it may not.
    """
    groups: list[list[Line]] = []
    for line in lines:
        # What a task says before its processes do belongs to their first attempt.
        is_first = not groups or any(other.kind == "loading" for other in groups[-1])
        if not groups or line.kind == "began" or (line.kind == "loading" and is_first):
            groups.append([])
        groups[-1].append(line)
    devices = 1.0
    made = []
    for group in groups:
        devices = last_value(group, "devices") or devices
        made.append(_made(group, devices))
    if made and now is not None and not made[-1].is_over:
        made[-1] = replace(made[-1], ended=max(made[-1].ended, now))
    held = [replace(one, ended=after.began) if after.holds_on else one for one, after in pairwise(made)]
    return [*held, *made[-1:]]


def _made(lines: Sequence[Line], devices: float) -> Made:
    training = next((line for line in lines if line.kind == "training"), None)
    at = training.step if training else 0
    return Made(
        began=lines[0].at,
        ended=lines[-1].at,
        devices=devices,
        holds_on=lines[0].kind != "began",
        trains_since=training.at if training else None,
        resumed_at=at,
        reached=tuple((line.step, line.at) for line in lines if line.kind == "step"),
        saved=max([at, *(line.step for line in lines if line.kind == "saved")]),
        is_over=any(line.kind in ENDS for line in lines),
        has_finished=any(line.kind == "finished" for line in lines),
    )


def gpu_hours(made: Sequence[Made], *, waiting: float = 0.0, planned: float | None = None) -> GpuHours:
    """GPU-hours of the attempts at a training.

    Args:
        made: The attempts, in order.
        waiting: Share of the devices that wait for those with other layers at any time.
        planned: GPU-hours that the plan said; None where it did not know.
    """
    used = faults = starting = layers = between = 0.0
    for number, one in enumerate(made):
        after = made[number + 1] if number + 1 < len(made) else None
        hours = one.devices / _SECONDS_PER_HOUR
        used += hours * (one.ended - one.began)
        if after and not after.holds_on:
            between += hours * max(0.0, after.began - one.ended)
        until = _kept_until(one, after)
        if until is None:
            faults += hours * (one.ended - one.began)
            continue
        faults += hours * (one.ended - until)
        since = until if one.trains_since is None else min(one.trains_since, until)
        starting += hours * (since - one.began)
        layers += waiting * hours * (until - since)
    return GpuHours(used, faults, starting, layers, between, planned)


def _kept_until(one: Made, after: Made | None) -> float | None:
    """When an attempt had done what is kept of it; None if nothing is."""
    if one.has_finished or (after is None and not one.is_over):
        return one.ended
    if after is None or after.trains_since is None:
        return one.kept_until(one.saved)
    return one.kept_until(after.resumed_at)


def planned_hours(plan: TrainingPlan, steps: int) -> float | None:
    """GPU-hours that a plan expects; None where it does not know.

    Args:
        plan: The plan.
        steps: Optimizer steps, as counted from the rows; 0 where they are not known.
    """
    if plan.time is None or not (steps or plan.time.steps):
        return None
    return replace(plan.time, steps=steps or plan.time.steps).hours * devices_of(plan)


def devices_of(plan: TrainingPlan) -> int:
    """Devices that a plan holds: GPUs, or worker processes on a CPU.

    Args:
        plan: The plan.
    """
    return plan.nodes * plan.devices_per_node


def hours_of(plan: TrainingPlan, lines: Sequence[Line], now: float | None = None) -> GpuHours | None:
    """GPU-hours of a training so far; None if its lines tell of no attempt.

    Args:
        plan: Its plan.
        lines: Its lines.
        now: The present time, where the last attempt still goes on.
    """
    made = attempts_of(lines, now)
    if not made:
        return None
    steps = int(last_value(lines, "steps") or 0)
    waiting = plan.time.step.waiting if plan.time else 0.0
    return gpu_hours(made, waiting=waiting, planned=planned_hours(plan, steps))

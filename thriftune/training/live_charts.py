"""Charts of what a training tells of itself: speed and optimizer over steps, memory over time."""

import math
from collections.abc import Sequence

from thriftune.overhead import MARGIN
from thriftune.training.charts import (
    Chart,
    Point,
    gib,
    limit_ticks,
    path,
    scale,
    share,
    step_ticks,
    thinned,
    time_ticks,
)
from thriftune.training.lines import Line, by_step, last_value
from thriftune.training_plan import TrainingPlan

# Title, name of the value, and unit.
_SERIES = (
    ("Learning rate", "learning_rate", ""),
    ("Norm of the gradients", "gradient_norm", "before clipping"),
    ("Loss scale", "loss_scale", "of fp16"),
)


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """A chart over steps for each series of numbers that lines have.

    Args:
        lines: The lines of a training.
    """
    speed = _chart("Tokens per second", _speeds(lines), "over all ranks, without validations and checkpoints")
    others = [_chart(title, _floats(by_step(lines, name)), note) for title, name, note in _SERIES]
    return [chart for chart in (speed, *others) if chart is not None]


def _floats(points: Sequence[tuple[int, float]]) -> list[Point]:
    return [(float(step), value) for step, value in points]


def _speeds(lines: Sequence[Line]) -> list[Point]:
    """Tokens per second of each line of steps, counted from the line before it in the same attempt."""
    points: list[Point] = []
    before: Line | None = None
    for line in lines:
        if line.kind in ("began", "loading"):
            before = None
        if line.kind != "step" or "busy_seconds" not in line.values:
            continue
        if before is not None:
            seconds = line.values["busy_seconds"] - before.values["busy_seconds"]
            tokens = line.values.get("tokens", 0.0) - before.values.get("tokens", 0.0)
            if seconds > 0:
                points.append((float(line.step), tokens / seconds))
        before = line
    return points


def _chart(title: str, points: Sequence[Point], note: str) -> Chart | None:
    """A chart of one value over steps; None if there are no points. Of steps that were done again it has the last."""
    newest = dict(points)
    finite = [(step, newest[step]) for step in sorted(newest) if math.isfinite(newest[step])]
    if not finite:
        return None
    values = [value for _, value in finite]
    low, high, labels = scale(min(0.0, *values), max(values))
    first, last = finite[0][0], finite[-1][0]
    line = path(thinned(finite), (first, last, low, high))
    now = f"{values[-1]:,.3g}" if values[-1] < 1000 else f"{values[-1]:,.0f}"
    bad = sorted({share(step, first, last) for step, value in newest.items() if not math.isfinite(value)})
    said = f"{now} at the last step; {note}" if note else f"{now} at the last step"
    return Chart(title, said, [("main", line)], step_ticks(int(first), int(last)), labels, [], bad)


def memory_chart(plan: TrainingPlan, lines: Sequence[Line], ranks: Sequence[Line]) -> Chart | None:
    """Peak memory of the fullest device over the last attempt, beside what is planned.

    Args:
        plan: The plan.
        lines: The lines of the training.
        ranks: Lines of other ranks, which have their memory.

    Returns:
        The chart; None if no memory was measured.
    """
    starts = [line.at for line in lines if line.kind == "loading"]
    begun = starts[-1] if starts else 0.0
    told = [line for line in sorted([*lines, *ranks], key=lambda line: line.at) if line.at >= begun]
    allocated, reserved = (_peaks(told, name, begun) for name in ("allocated_gib", "reserved_gib"))
    if not allocated:
        return None
    planned = last_value(lines, "planned_gib") or plan.memory.allocated_gib
    limit = plan.device_limit_gib
    end = max(allocated[-1][0], 1.0)
    is_gpu = plan.hardware.is_gpu
    peak = max(planned, allocated[-1][1], *(value for _, value in reserved))
    high, labels = (limit, limit_ticks(limit)) if is_gpu and limit >= peak else scale(0.0, peak)[1:]
    box = (0.0, end, 0.0, high)
    drawn = [("dropped", path([(0.0, planned), (end, planned)], box)), ("main", path(thinned(allocated), box))]
    held = ""
    if reserved:
        drawn.append(("held-out", path(thinned(reserved), box)))
        expected = planned + plan.memory.device.get(MARGIN, 0.0)
        held = f", {gib(reserved[-1][1])} held by torch ({gib(expected)} planned)"
    of = f" of {gib(limit)}" if is_gpu else ""
    note = f"{gib(planned)} GiB planned, {gib(allocated[-1][1])} measured{held}{of}"
    title = "Memory of the fullest GPU" if is_gpu else "Memory of the largest process"
    return Chart(title, f"{note}; the highest so far in this attempt", drawn, time_ticks(end), labels, [], [])


def _peaks(lines: Sequence[Line], name: str, begun: float) -> list[Point]:
    """The highest value so far of all processes, by seconds since a moment."""
    points: list[Point] = []
    peak = 0.0
    for line in lines:
        if name in line.values:
            peak = max(peak, line.values[name])
            points.append((line.at - begun, peak))
    return points

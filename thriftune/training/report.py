"""The page of a training: its loss, what it used of the machine, and what happened to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

from thriftune import pages
from thriftune.training.guards.resources import THRESHOLDS, Samples
from thriftune.training.result import TrainingResult

# A screen shows no more; each longer series is drawn by the means of its neighbours.
_MOST_POINTS = 600
# Two losses are a line already; from three on, the smoothed one is drawn over them.
_FEWEST_TO_SMOOTH = 3
# What the past weighs in the smoothed line: TensorBoard's default, and more where there are many losses, as much as
# lets the line lag behind them by a hundredth of the chart.
_LEAST_WEIGHT, _LAG_SHARE = 0.6, 100
# Charts are drawn in this box and stretched to the page.
_WIDTH, _HEIGHT = 1000.0, 100.0
_TICKS = 5
# GPUs are full by design, and not marked for it.
_NEARLY_FULL = THRESHOLDS[0]

Point = tuple[float, float]
EventKind = Literal["resumed", "checkpoint", "halved", "rolled back", "warning"]
# What is worth a line in the charts. There are too many checkpoints, and a warning is about its own chart.
_MARKED: tuple[EventKind, ...] = ("resumed", "halved", "rolled back")


@dataclass(frozen=True)
class Event:
    """Something that happened to a training.

    Attributes:
        step: Optimizer step.
        seconds: Since the start of this attempt.
        kind: What it was.
        text: What to say of it.
    """

    step: int
    seconds: float
    kind: EventKind
    text: str


def events_of(result: TrainingResult) -> list[Event]:
    """What happened to a training.

    Args:
        result: What was measured of it.
    """
    at, size = result.resumed_at, result.halvings
    went_on = " ".join([f"Went on from the checkpoint of step {at}.", *result.remarks])
    happened = [Event(at, 0.0, "resumed", went_on)] if at else []
    if size.count:
        text = f"Memory ran out: micro batch {size.after} in place of {size.before}."
        happened.append(Event(at, 0.0, "halved", text))
    left_out = "The loss diverged: the batch of step {} was left out."
    happened += [Event(step, 0.0, "rolled back", left_out.format(step)) for step in result.skipped_steps]
    happened += [Event(step, 0.0, "checkpoint", "Saved.") for step in result.checkpoint_steps]
    return [*happened, *(Event(0, warning.seconds, "warning", warning.text) for warning in result.warnings)]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis.

    Attributes:
        place: Share of the axis, 0 to 1.
        label: What stands there.
    """

    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Lines to draw over one axis.

    Attributes:
        title: What it shows.
        note: The numbers that matter, as text.
        lines: Class and path of each line, in the order of drawing.
        x_ticks: Along the bottom.
        y_ticks: Along the side.
        marks: Place, and text, of each event.
        bad: Places of values that are not finite.
        is_full: Whether it shows something nearly full.
    """

    title: str
    note: str
    lines: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    bad: list[float]
    is_full: bool = False


def page_of(run_name: str, result: TrainingResult) -> str:
    """The page of a finished training.

    Args:
        run_name: Name of the run.
        result: What was measured.
    """
    losses = list(zip(result.loss_steps, result.losses, strict=True))
    return html(run_name, losses, result.resources, events_of(result))


def html(
    title: str,
    losses: list[tuple[int, float]],
    samples: Samples | None,
    events: list[Event],
    learning_rates: list[tuple[int, float]] | None = None,
) -> str:
    """The page, which loads nothing and runs nothing. Texts are escaped.

    Args:
        title: Name of the run.
        losses: Step and loss, in the order of training. A step that comes again was trained again.
        samples: What was used over time, if that is known.
        events: What happened, in any order.
        learning_rates: Step and learning rate, if that is known.
    """
    final, _ = _split(losses)
    return pages.render(
        "training/report.html.jinja",
        {"duration": duration},
        title=title,
        losses=losses,
        first=final[0] if final else None,
        last=final[-1] if final else None,
        lowest=min(final, key=lambda point: point[1]) if final else None,
        loss=loss_chart(losses, events) if losses else None,
        rate=_rate_chart(learning_rates, losses) if learning_rates else None,
        resources=resource_charts(samples, events) if samples and samples.seconds else [],
        events=sorted(events, key=lambda event: (event.seconds, event.step)),
        seconds=max([*(samples.seconds if samples else []), *(event.seconds for event in events)], default=None),
        width=_WIDTH,
        height=_HEIGHT,
    )


def loss_chart(losses: Sequence[tuple[int, float]], events: Sequence[Event]) -> Chart:
    """The loss over the steps. What was trained again is drawn apart from what the result was made of.

    Args:
        losses: Step and loss, in the order of training.
        events: What happened.
    """
    kept, dropped = _split(losses)
    finite = [loss for _, loss in losses if math.isfinite(loss)] or [0.0]
    low, high, labels = _scale(min(finite), max(finite))
    first, last = min(step for step, _ in losses), max(step for step, _ in losses)
    box = (float(first), float(last), low, high)
    lines = [("dropped", _path(thinned(track), box)) for track in dropped]
    note = "mean over tokens, in nats"
    if len(kept) < _FEWEST_TO_SMOOTH:
        lines.append(("main", _path(thinned(kept), box)))
    else:
        weight = max(_LEAST_WEIGHT, 1 - _LAG_SHARE / len(kept))
        lines.append(("quiet", _dots(thinned(kept), box)))
        lines.append(("main", _path(thinned(smoothed(kept, weight)), box)))
        note += f"; smoothed by an exponential moving average of weight {weight:.3g}"
    return Chart(
        title="Loss",
        note=note,
        lines=lines,
        x_ticks=_step_ticks(first, last),
        y_ticks=labels,
        marks=[Tick(_share(e.step, first, last), f"step {e.step:,}: {e.text}") for e in events if e.kind in _MARKED],
        bad=sorted({_share(step, first, last) for step, loss in losses if not math.isfinite(loss)}),
    )


def resource_charts(samples: Samples, events: Sequence[Event]) -> list[Chart]:
    """A chart for each thing that was used, over time; to its limit, if it has one.

    Args:
        samples: What was used.
        events: What happened.
    """
    table = (
        ("GPU memory", samples.device, samples.device_limit),
        ("Host memory", samples.host, samples.host_limit),
        ("Memory of this process", samples.process, 0.0),
        ("Shared memory (/dev/shm)", samples.shared_memory, samples.shared_memory_limit),
        ("Disk", samples.disk, samples.disk_limit),
    )
    end = max(samples.seconds[-1], 1.0)
    marks = [Tick(_share(e.seconds, 0, end), f"{duration(e.seconds)}: {e.text}") for e in events if e.kind in _MARKED]
    charts = []
    for title, values, limit in table:
        if not values:
            continue
        peak = max(values)
        high, labels = (limit, _limit_ticks(limit)) if limit else _scale(0.0, peak)[1:]
        path = _path(thinned(list(zip(samples.seconds, values, strict=True))), (0.0, end, 0.0, high))
        of = f" of {_gib(limit)} GiB ({peak / limit:.0%})" if limit else " GiB"
        lines = [("area", f"{path} L {_WIDTH:g} {_HEIGHT:g} L 0 {_HEIGHT:g} Z"), ("main", path)]
        is_full = bool(limit) and peak / limit >= _NEARLY_FULL and values is not samples.device
        charts.append(Chart(title, f"at most {_gib(peak)}{of}", lines, _time_ticks(end), labels, marks, [], is_full))
    return charts


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Points that neighbours were put together in, so that there are at most so many.

    Args:
        points: In order.
        most: To keep.
    """
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """The exponential moving average of points, as TensorBoard draws it.

    Args:
        points: In order.
        weight: Of the average so far, 0 to below 1, beside each further point. The average starts at zero, and is
            divided by what all points so far weigh: else it would start too low.
    """
    sums = accumulate((y for _, y in points), lambda total, y: weight * total + (1 - weight) * y, initial=0.0)
    averages = zip(points, islice(sums, 1, None), strict=True)
    return [(x, total / (1 - weight**count)) for count, ((x, _), total) in enumerate(averages, start=1)]


def duration(seconds: float) -> str:
    """A time to read, with two units at most."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min"


def _rate_chart(rates: Sequence[tuple[int, float]], losses: Sequence[tuple[int, float]]) -> Chart:
    """The learning rate over the same steps as the loss."""
    steps = [step for step, _ in losses or rates]
    first, last = min(steps), max(steps)
    peak = max(rate for _, rate in rates)
    path = _path(thinned(_split(rates)[0]), (float(first), float(last), 0.0, peak * 1.1 or 1.0))
    ticks = [Tick(0.0, "0"), Tick(1 / 1.1, f"{peak:.1e}")]
    note = f"at most {peak:.2e}"
    return Chart("Learning rate", note, [("main", path)], _step_ticks(first, last), ticks, [], [])


def _split(losses: Sequence[tuple[int, float]]) -> tuple[list[Point], list[list[Point]]]:
    """The finite losses of the steps that the result is made of, and the stretches that were undone."""
    tracks: list[list[tuple[int, float]]] = [[]]
    for step, loss in losses:
        if tracks[-1] and step <= tracks[-1][-1][0]:  # training went back
            tracks.append([])
        tracks[-1].append((step, loss))
    kept: list[Point] = []
    dropped: list[list[Point]] = []
    undone_from = math.inf
    for track in reversed(tracks):
        finite = [(float(step), loss) for step, loss in track if math.isfinite(loss)]
        kept += [point for point in finite if point[0] < undone_from]
        dropped.append([point for point in finite if point[0] >= undone_from])
        undone_from = min(undone_from, track[0][0] if track else math.inf)
    return sorted(kept), [track for track in dropped if track]


def _path(points: Sequence[Point], box: tuple[float, float, float, float]) -> str:
    """An SVG path through points of a box (left, right, bottom, top)."""
    places = _places(points, box)
    if len(places) == 1:
        return _dots(points, box)
    return "M " + " L ".join(f"{x:.1f} {y:.2f}" for x, y in places) if places else ""


def _dots(points: Sequence[Point], box: tuple[float, float, float, float]) -> str:
    """An SVG path with a dot at each point of a box: with round ends, a line without length is one."""
    return " ".join(f"M {x:.1f} {y:.2f} L {x:.1f} {y:.2f}" for x, y in _places(points, box))


def _places(points: Sequence[Point], box: tuple[float, float, float, float]) -> list[Point]:
    """Where points of a box (left, right, bottom, top) are drawn."""
    left, right, bottom, top = box
    return [(_share(x, left, right) * _WIDTH, (1 - _share(y, bottom, top)) * _HEIGHT) for x, y in points]


def _share(value: float, low: float, high: float) -> float:
    return (min(max(value, low), high) - low) / (high - low) if high > low else 0.5


def _scale(low: float, high: float) -> tuple[float, float, list[Tick]]:
    """A range of round numbers around two values, and where they stand."""
    span = high - low or abs(high) or 1.0
    step = _round_step(span / (_TICKS - 1))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    end = max(end, start + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [Tick((i - start) / (end - start), f"{i * step:,.{digits}f}") for i in range(start, end + 1)]
    return start * step, end * step, ticks


def _round_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _limit_ticks(limit: float) -> list[Tick]:
    return [Tick(share, _gib(limit * share)) for share in (0.0, 0.5, 1.0)]


def _step_ticks(first: int, last: int) -> list[Tick]:
    if first == last:
        return [Tick(0.5, f"{first:,}")]
    between = max(1, round(_round_step((last - first) / 6)))
    room = (last - first) / 12  # labels at the ends take as much
    inner = [step for step in range(-(-first // between) * between, last, between) if first + room < step < last - room]
    return [Tick(_share(step, first, last), f"{step:,}") for step in (first, *inner, last)]


def _time_ticks(end: float) -> list[Tick]:
    return [Tick(share, duration(end * share)) for share in (0.0, 0.5, 1.0)]


def _gib(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 or size == 0 else f"{size:.1f}" if size >= 1 else f"{size:.2f}"

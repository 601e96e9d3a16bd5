"""Charts as SVG paths: points scaled to a box, round numbers along its sides, smoothed lines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

# A screen shows no more points; in a longer series, the mean of neighbours is drawn.
_MOST_POINTS = 600
# Charts are drawn in this box and stretched to the page.
WIDTH, HEIGHT = 1000.0, 100.0
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis.

    Attributes:
        position: Position as a share of the axis, from 0 to 1.
        label: Text at this position.
    """

    position: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart: lines over one axis.

    Attributes:
        title: Title of the chart.
        note: The numbers that matter, as text.
        lines: Class and path of each line, in the order of drawing.
        x_ticks: Labels along the bottom.
        y_ticks: Labels along the side.
        marks: Position and text of each event.
        bad: Positions of values that are not finite.
        is_full: Whether the chart shows something that is nearly full.
        second: A second row of labels along the bottom.
        kept: Position and text of the step whose weights are the result; None if it is not marked.
        dots: Position and text of events that are too frequent for a line.
    """

    title: str
    note: str
    lines: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    bad: list[float]
    is_full: bool = False
    second: list[Tick] = field(default_factory=list)
    kept: Tick | None = None
    dots: list[Tick] = field(default_factory=list)


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Points in which neighbours are averaged, so that there are not too many.

    Args:
        points: In order.
        most: Largest number of points to return.
    """
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """The exponential moving average of points, as TensorBoard draws it.

    Args:
        points: In order.
        weight: Weight of the average so far against each new point, from 0 to below 1. The average starts at zero, and
            is divided by the sum of all weights so far: else it would start too low.
    """
    sums = accumulate((y for _, y in points), lambda total, y: weight * total + (1 - weight) * y, initial=0.0)
    averages = zip(points, islice(sums, 1, None), strict=True)
    return [(x, total / (1 - weight**count)) for count, ((x, _), total) in enumerate(averages, start=1)]


def duration(seconds: float) -> str:
    """A time in seconds as text, with at most two units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min"


def path(points: Sequence[Point], box: tuple[float, float, float, float]) -> str:
    """An SVG path through points.

    Args:
        points: The points, in order.
        box: The drawn range of the axes: left, right, bottom, top.
    """
    places = _places(points, box)
    if len(places) == 1:
        return dots(points, box)
    return "M " + " L ".join(f"{x:.1f} {y:.2f}" for x, y in places) if places else ""


def dots(points: Sequence[Point], box: tuple[float, float, float, float]) -> str:
    """An SVG path with a dot at each point: a line without length and with round ends.

    Args:
        points: The points.
        box: The drawn range of the axes: left, right, bottom, top.
    """
    return " ".join(f"M {x:.1f} {y:.2f} L {x:.1f} {y:.2f}" for x, y in _places(points, box))


def _places(points: Sequence[Point], box: tuple[float, float, float, float]) -> list[Point]:
    """The drawing coordinates of points in a box (left, right, bottom, top)."""
    left, right, bottom, top = box
    return [(share(x, left, right) * WIDTH, (1 - share(y, bottom, top)) * HEIGHT) for x, y in points]


def share(value: float, low: float, high: float) -> float:
    """The position of a value between two others, from 0 to 1; 0.5 if these are equal."""
    return (min(max(value, low), high) - low) / (high - low) if high > low else 0.5


def scale(low: float, high: float) -> tuple[float, float, list[Tick]]:
    """A range of round numbers around two values, and their labels."""
    span = high - low or abs(high) or 1.0
    step = _round_step(span / (_TICKS - 1))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    end = max(end, start + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [Tick((i - start) / (end - start), f"{i * step:,.{digits}f}") for i in range(start, end + 1)]
    return start * step, end * step, ticks


def _round_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least a value."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def limit_ticks(limit: float) -> list[Tick]:
    """Labels from zero to a limit in GiB."""
    return [Tick(share, gib(limit * share)) for share in (0.0, 0.5, 1.0)]


def step_ticks(first: int, last: int) -> list[Tick]:
    """Labels of optimizer steps: the ends, and round numbers between them."""
    if first == last:
        return [Tick(0.5, f"{first:,}")]
    between = max(1, round(_round_step((last - first) / 6)))
    room = (last - first) / 12  # that much is taken by the labels at the ends
    inner = [step for step in range(-(-first // between) * between, last, between) if first + room < step < last - room]
    return [Tick(share(step, first, last), f"{step:,}") for step in (first, *inner, last)]


def time_ticks(end: float) -> list[Tick]:
    """Labels of times from 0 to an end, in seconds."""
    return [Tick(share, duration(end * share)) for share in (0.0, 0.5, 1.0)]


def gib(size: float) -> str:
    """GiB as text."""
    return f"{size:,.0f}" if size >= 100 or size == 0 else f"{size:.1f}" if size >= 1 else f"{size:.2f}"


def count(number: float) -> str:
    """A number as text, such as 950, 12.3 k or 4.56 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"

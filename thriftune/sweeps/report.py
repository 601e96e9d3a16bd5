"""The page of a sweep: the held-out losses of all trials on one chart, and the table of what came of them."""

import math
from collections.abc import Mapping, Sequence

from thriftune import pages
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.rounds import SoFar
from thriftune.sweeps.table import SweepTable, cells_of, headline
from thriftune.training.charts import HEIGHT, WIDTH, Chart, Point, path, scale, share, step_ticks, thinned

# Colours that can be told apart. Of more trials than that, all but the best have one colour.
COLOURS = 8
# Class of a curve of one validation, as of a trial that was stopped early: a dot, which has to be seen.
POINT = "point"


def page_of(table: SweepTable, found: SoFar) -> str:
    """A sweep as one HTML page.

    Args:
        table: Its table.
        found: What came of its trials.
    """
    header, rows = cells_of(table)
    chart = chart_of(found.outcomes, table.best)
    classes = classes_of([outcome.number for outcome in found.outcomes if curve_of(outcome)], table.best)
    return pages.render(
        "sweeps/report.html.jinja",
        {},
        name=table.name,
        headline=headline(table),
        header=header[:-1],
        rows=[(cells[:-1], row) for cells, row in zip(rows, table.rows, strict=True)],
        chart=chart,
        legend=legend_of(classes),
        colours=COLOURS,
        width=WIDTH,
        height=HEIGHT,
    )


def curve_of(outcome: Outcome) -> list[Point]:
    """The held-out loss of a trial over its steps."""
    if outcome.training is not None:
        return [(float(one.step), one.loss) for one in outcome.training.validations]
    return [(float(step), loss) for step, loss in zip(outcome.steps, outcome.losses, strict=True)]


def chart_of(outcomes: Sequence[Outcome], best: int | None) -> Chart | None:
    """The held-out losses of all trials over their steps; None if none was measured.

    Args:
        outcomes: What came of the trials.
        best: Number of the best, which is drawn last; None if there is none.
    """
    curves = {outcome.number: curve_of(outcome) for outcome in outcomes}
    finite = {number: [p for p in points if math.isfinite(p[1])] for number, points in curves.items()}
    values = [loss for points in finite.values() for _, loss in points]
    if not values:
        return None
    steps = [step for points in curves.values() for step, _ in points]
    low, high, labels = scale(min(values), max(values))
    first, last = min(steps), max(steps)
    order = sorted(finite, key=lambda number: (number == best, number))
    classes = classes_of([number for number, points in curves.items() if points], best)
    classes |= {number: f"{classes[number]} {POINT}" for number, points in finite.items() if len(points) == 1}
    lines = [(classes[n], path(thinned(finite[n]), (first, last, low, high))) for n in order if finite[n]]
    bad = {share(step, first, last) for points in curves.values() for step, loss in points if not math.isfinite(loss)}
    note = f"{len(lines)} trial{'s' if len(lines) != 1 else ''}, in nats"
    return Chart("Held-out loss", note, lines, step_ticks(int(first), int(last)), labels, [], sorted(bad))


def classes_of(numbers: Sequence[int], best: int | None) -> dict[int, str]:
    """The class that each trial's curve is drawn with, by its number.

    Args:
        numbers: The trials that have a curve.
        best: Number of the best; None if there is none.
    """
    others = [number for number in numbers if number != best]
    is_told_apart = len(others) <= COLOURS
    found = {number: f"trial-{place}" if is_told_apart else "other" for place, number in enumerate(others)}
    return {number: found.get(number, "best") for number in numbers}


def legend_of(classes: Mapping[int, str]) -> list[tuple[str, str]]:
    """What the curves are, and the class of each: curves that are drawn alike are said once.

    Args:
        classes: The class of each trial, by its number.
    """
    found = []
    for number, drawn_as in classes.items():
        text = {"best": f"trial {number}, the best", "other": "the other trials"}.get(drawn_as, f"trial {number}")
        if (text, drawn_as) not in found:
            found.append((text, drawn_as))
    return found

"""What pages show of a comparison: rows of tables, changes as dots with intervals, and items to read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from os.path import commonprefix
from typing import Literal

from thriftune.config.publishing import ANSWERS
from thriftune.inference.gate import wording
from thriftune.inference.gate.behaviour import BEHAVIOURS
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.flips import OF_BENCHMARK, Flip, Question
from thriftune.inference.gate.verdict import Verdict
from thriftune.training import charts
from thriftune.training.charts import Tick

Direction = Literal["better", "worse", "unclear"]

# Groups of each end that a page shows; all where there are no more than both.
_GROUPS = 5


@dataclass(frozen=True)
class Row:
    """A metric in a table.

    Attributes:
        name: What it is called there.
        items: Number of items.
        base: Value of the base, and its interval.
        tuned: Value of the result, and its interval.
        change: The change, and its interval.
        direction: What the interval of the change says.
        moved: Number of items that got better and worse.
        p_value: McNemar's exact test; empty where it does not apply.
        floor: Noise floor.
    """

    name: str
    items: str
    base: tuple[str, str]
    tuned: tuple[str, str]
    change: tuple[str, str]
    direction: Direction
    moved: str
    p_value: str
    floor: str


@dataclass(frozen=True)
class Dot:
    """A change as a dot with its interval.

    Attributes:
        name: The metric.
        text: The change in words.
        direction: What the interval says.
        point: SVG path of the dot.
        interval: SVG path of the interval.
        limit: SVG path of the line that the gate draws; empty where it draws none.
    """

    name: str
    text: str
    direction: Direction
    point: str
    interval: str
    limit: str


@dataclass(frozen=True)
class Plot:
    """Changes of one unit over one axis.

    Attributes:
        title: What the axis shows.
        zero: SVG path of the line of no change.
        ticks: Labels along the axis.
        dots: The changes.
    """

    title: str
    zero: str
    ticks: list[Tick]
    dots: list[Dot]


@dataclass(frozen=True)
class View:
    """What a page shows of one comparison.

    Attributes:
        confidence: Confidence of the intervals, in percent.
        repeats: How often the base was measured.
        verdict: What the gate decides; None without a gate.
        metrics: The metrics of whole benchmarks.
        groups: The most and least improved groups, best first.
        left_out: Number of groups between them.
        behaviours: How the models answer.
        plots: The changes.
        better: Items that became better.
        worse: Items that became worse.
        answers: Answers of which the kind became worse.
    """

    confidence: str
    repeats: int
    verdict: Verdict | None
    metrics: list[Row]
    groups: list[Row]
    left_out: int
    behaviours: list[Row]
    plots: list[Plot]
    better: list[Flip]
    worse: list[Flip]
    answers: list[Flip]


def view_of(comparison: Comparison, verdict: Verdict | None = None) -> View:
    """What a page shows of a comparison.

    Args:
        comparison: Base and result on the same items.
        verdict: What the gate decides, if there is one; the plots show its limits.
    """
    whole = [one for one in comparison.metrics if not one.group and one not in comparison.behaviours]
    groups = list(comparison.groups)
    shown = groups if len(groups) <= 2 * _GROUPS else [*groups[:_GROUPS], *groups[-_GROUPS:]]
    behaviours = comparison.behaviours
    of_benchmarks = [flip for flip in comparison.flips if flip.metric not in {one.metric for one in behaviours}]
    told = _without_frames(of_benchmarks)
    return View(
        f"{comparison.confidence * 100:.4g}%",
        comparison.repeats,
        verdict,
        [_row(one, one.metric) for one in whole],
        [_row(one, f"{one.task}/{one.group}") for one in shown],
        len(groups) - len(shown),
        [_row(one, BEHAVIOURS[one.name].title) for one in behaviours],
        _plots([*comparison.main, *shown, *behaviours], _limits(verdict)),
        _in_turn(told, "better"),
        _in_turn(told, "worse"),
        list({f.question: f for f in comparison.flips if f not in of_benchmarks and f.became == "worse"}.values()),
    )


def direction_of(one: Compared) -> Direction:
    """What the interval of a change says.

    Args:
        one: The metric.
    """
    if one.higher_is_better is None:
        return "unclear"
    return "better" if one.improvement.low > 0 else "worse" if one.improvement.high < 0 else "unclear"


def _row(one: Compared, name: str) -> Row:
    is_counted = one.kind == "mean"
    return Row(
        name,
        f"{one.items:,}",
        (wording.value(one.base.value, one), wording.ends(one.base, one)),
        (wording.value(one.tuned.value, one), wording.ends(one.tuned, one)),
        wording.change_parts(one),
        direction_of(one),
        f"{one.better:,} / {one.worse:,}" if one.higher_is_better is not None and is_counted else "",
        "" if one.p_value is None else f"{one.p_value:.4f}" if one.p_value >= 1e-4 else "< 0.0001",
        wording.size(one.floor, one),
    )


def _in_turn(flips: Sequence[Flip], became: str) -> list[Flip]:
    """The first items of a direction, one of each benchmark in turn: the largest would fill the list."""
    found = [flip for flip in flips if flip.became == became]
    by_task = [[flip for flip in found if flip.metric == metric] for metric in dict.fromkeys(f.metric for f in found)]
    return [flip for flip in chain(*zip_longest(*by_task)) if flip][:OF_BENCHMARK]


def _without_frames(flips: Sequence[Flip]) -> list[Flip]:
    """Items without the lines around every question of a benchmark, which a chat template puts there."""
    frames = {task: _frame(flips, task) for task in {flip.question.task for flip in flips}}
    return [replace(flip, question=_cut(flip.question, *frames[flip.question.task])) for flip in flips]


def _frame(flips: Sequence[Flip], task: str) -> tuple[int, int]:
    """Lengths of the whole lines that all prompts of a benchmark begin and end with."""
    prompts = list({flip.question.prompt for flip in flips if flip.question.task == task})
    if len(prompts) < 2:
        return 0, 0
    start, end = (commonprefix(texts) for texts in (prompts, [prompt[::-1] for prompt in prompts]))  # noqa: RUF071
    return start.rfind("\n") + 1, end.rfind("\n") + 1


def _cut(question: Question, start: int, end: int) -> Question:
    return replace(question, prompt=question.prompt[start : len(question.prompt) - end])


def _limits(verdict: Verdict | None) -> dict[str, float]:
    """The improvement at which a gate draws its line, by metric."""
    rulings = verdict.rulings if verdict else ()
    return {found.metric: found.required if found.rule == "improves" else -found.required for found in rulings}


def _plots(metrics: Iterable[Compared], limits: dict[str, float]) -> list[Plot]:
    """The changes, those of one unit over one axis; a rise is to the right."""
    by_unit: dict[str, list[Compared]] = {}
    for one in metrics:
        by_unit.setdefault(_axis(one), []).append(one)
    return [_plot(title, found, limits) for title, found in by_unit.items()]


def _axis(one: Compared) -> str:
    if one.task == ANSWERS and one.kind == "mean":  # often few: their intervals would press those of benchmarks flat
        return "How the models answer: change in points of a hundred"
    titles = {" points": "Change in points of a hundred", "%": "Change of the length, in percent"}
    per_token = "Change in nats per token" if one.kind == "per_token" else "Change of the score"
    return titles.get(wording.unit(one), per_token)


def _plot(title: str, metrics: Sequence[Compared], limits: dict[str, float]) -> Plot:
    factor = 100.0 if wording.unit(metrics[0]) else 1.0
    ends = [factor * end for one in metrics for end in (one.change.low, one.change.high, *_lines(one, limits))]
    left, right, ticks = charts.scale(min(*ends, 0.0), max(*ends, 0.0))
    box = (left, right, 0.0, 1.0)

    def line(at: float) -> str:
        return charts.path([(factor * at, 0.0), (factor * at, 1.0)], box)

    dots = [
        Dot(
            one.metric,
            wording.change(one),
            direction_of(one),
            charts.dots([(factor * one.change.value, 0.5)], box),
            charts.path([(factor * one.change.low, 0.5), (factor * one.change.high, 0.5)], box),
            " ".join(line(at) for at in _lines(one, limits)),
        )
        for one in metrics
    ]
    return Plot(title, line(0.0), ticks, dots)


def _lines(one: Compared, limits: dict[str, float]) -> list[float]:
    """Where the gate draws lines, as changes: of what neither rises nor falls for the better, on both sides."""
    if one.metric not in limits:
        return []
    at = limits[one.metric]
    if one.higher_is_better is None:
        return [at, -at]
    return [-at if one.higher_is_better is False else at]

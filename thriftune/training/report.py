"""The page of a training: its loss, its use of memory and disk, and its events."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from thriftune import pages
from thriftune.training.charts import (
    HEIGHT,
    WIDTH,
    Chart,
    Point,
    Tick,
    count,
    dots,
    duration,
    gib,
    limit_ticks,
    path,
    scale,
    share,
    smoothed,
    step_ticks,
    thinned,
    time_ticks,
)
from thriftune.training.guards.resources import THRESHOLDS, Samples
from thriftune.training.result import TrainingResult, Validation

if TYPE_CHECKING:
    from thriftune.training.live_report import Live

# Two losses make a line; from three on, the smoothed line is drawn over them.
_FEWEST_TO_SMOOTH = 3
# Weight of the past in the smoothed line: TensorBoard's default, and more where there are many losses, up to a lag of a
# hundredth of the chart.
_LEAST_WEIGHT, _LAG_SHARE = 0.6, 100
# A page shows the newest.
_MOST_EVENTS = 200
# Not for GPUs, which are full by design.
_NEARLY_FULL = THRESHOLDS[0]

EventKind = Literal[
    "resumed", "checkpoint", "halved", "rolled back", "warning", "started", "interrupted", "stopped", "finished"
]
# Events with a line in the charts. There are too many checkpoints, and a warning concerns only one chart.
_MARKED: tuple[EventKind, ...] = ("resumed", "halved", "rolled back")


@dataclass(frozen=True)
class Event:
    """Something that happened during a training.

    Attributes:
        step: Optimizer step; None if not known.
        seconds: Seconds since the start, of this attempt or of the first one; None if not known.
        kind: What it was.
        text: Description.
    """

    step: int | None
    seconds: float | None
    kind: EventKind
    text: str


def events_of(result: TrainingResult) -> list[Event]:
    """The events of a training.

    Args:
        result: What was measured.
    """
    at, size = result.resumed_at, result.halvings
    resumed = " ".join([f"Resumed from the checkpoint of step {at}.", *result.remarks])
    happened = [Event(at, 0.0, "resumed", resumed)] if at else []
    if size.count:
        text = f"Memory ran out: micro batch {size.after} instead of {size.before}."
        happened.append(Event(at, 0.0, "halved", text))
    left_out = "The loss diverged: the batch of step {} was skipped."
    happened += [Event(step, None, "rolled back", left_out.format(step)) for step in result.skipped_steps]
    happened += [Event(step, None, "checkpoint", "Saved.") for step in result.checkpoint_steps]
    return [*happened, *(Event(None, warning.seconds, "warning", warning.text) for warning in result.warnings)]


def page_of(run_name: str, result: TrainingResult) -> str:
    """The page of a finished training.

    Args:
        run_name: Name of the run.
        result: What was measured.
    """
    return html(run_name, curve_of(result), result.resources, events_of(result))


@dataclass(frozen=True)
class Curve:
    """The loss of a training over its steps.

    Attributes:
        losses: Step and training loss, in the order of training. A step that occurs twice was trained again.
        validations: Held-out losses.
        tokens: Step, and number of tokens trained on up to it.
        kept_step: Step whose weights are the result; None if not known yet.
        unit: What the losses are means over.
    """

    losses: list[tuple[int, float]]
    validations: list[Validation] = field(default_factory=list)
    tokens: list[tuple[int, float]] = field(default_factory=list)
    kept_step: int | None = None
    unit: str = "tokens"


def curve_of(result: TrainingResult) -> Curve:
    """The loss of a finished training.

    Args:
        result: What was measured.
    """
    losses = list(zip(result.loss_steps, result.losses, strict=True))
    tokens = list(zip(result.loss_steps, result.loss_tokens, strict=True))
    kept = result.kept_step if result.validations else None
    return Curve(losses, result.validations, tokens, kept, "tokens" if result.after.accuracy is None else "rows")


def html(
    title: str,
    curve: Curve,
    samples: Samples | None,
    events: list[Event],
    live: "Live | None" = None,
    of_attempt: list[Event] | None = None,
) -> str:
    """The page, without external resources and without scripts. Texts are escaped.

    Args:
        title: Name of the run.
        curve: Its loss.
        samples: Memory and disk over time; None if not known.
        events: Events, in any order.
        live: What is drawn of the training's lines; None where there are none.
        of_attempt: Events at seconds of the attempt that `samples` is of; None where those of `events` are.
    """
    marks = events if of_attempt is None else of_attempt
    final, _ = _split(curve.losses)
    held_out = sorted(curve.validations, key=lambda validation: validation.step)
    return pages.render(
        "training/report.html.jinja",
        {"duration": duration},
        title=title,
        first=final[0] if final else None,
        last=final[-1] if final else None,
        before=held_out[0] if held_out else None,
        lowest=min(held_out, key=lambda validation: validation.rank) if held_out else None,
        kept_step=curve.kept_step,
        loss=loss_chart(curve, events) if curve.losses or held_out else None,
        resources=resource_charts(samples, marks) if samples and samples.seconds else [],
        has_samples=samples is not None or live is None,
        events=sorted(events, key=lambda event: (event.seconds or 0.0, event.step or 0))[-_MOST_EVENTS:],
        left_out=max(0, len(events) - _MOST_EVENTS),
        seconds=max([*(samples.seconds if samples else []), *_times(marks)], default=None),
        live=live,
        width=WIDTH,
        height=HEIGHT,
    )


def loss_chart(curve: Curve, events: Sequence[Event]) -> Chart:
    """The chart of training and held-out loss over steps and tokens. Steps that were undone are separate lines.

    Args:
        curve: The losses.
        events: The events.
    """
    kept, dropped = _split(curve.losses)
    held_out = [(float(validation.step), validation.loss) for validation in curve.validations]
    general = [(float(v.step), v.general_loss) for v in curve.validations if v.general_loss is not None]
    points = [*((float(step), loss) for step, loss in curve.losses), *held_out, *general]
    finite = [loss for _, loss in points if math.isfinite(loss)] or [0.0]
    low, high, labels = scale(min(finite), max(finite))
    first, last = int(min(step for step, _ in points)), int(max(step for step, _ in points))
    box = (float(first), float(last), low, high)
    lines = [("dropped", path(thinned(track), box)) for track in dropped]
    note = f"mean over {curve.unit}, in nats"
    if len(kept) < _FEWEST_TO_SMOOTH:
        lines.append(("main", path(thinned(kept), box)))
    else:
        weight = max(_LEAST_WEIGHT, 1 - _LAG_SHARE / len(kept))
        lines.append(("quiet", dots(thinned(kept), box)))
        lines.append(("main", path(thinned(smoothed(kept, weight)), box)))
        note += f"; smoothed by an exponential moving average of weight {weight:.3g}"
    for name, found in (("held-out", held_out), ("general", general)):
        measured = [point for point in found if math.isfinite(point[1])]
        if measured:
            lines += [(name, path(measured, box)), (f"{name}-points", dots(measured, box))]
    steps = step_ticks(first, last)
    return Chart(
        title="Loss",
        note=note,
        lines=lines,
        x_ticks=steps,
        y_ticks=labels,
        marks=[
            Tick(share(e.step, first, last), f"step {e.step:,}: {e.text}")
            for e in events
            if e.kind in _MARKED and e.step is not None
        ],
        bad=sorted({share(step, first, last) for step, loss in curve.losses if not math.isfinite(loss)}),
        second=_token_ticks(curve, steps, first, last),
        kept=_kept_tick(curve, first, last),
        dots=[
            Tick(share(e.step, first, last), f"checkpoint of step {e.step:,}")
            for e in events
            if e.kind == "checkpoint" and e.step is not None
        ],
    )


def _times(events: Sequence[Event]) -> list[float]:
    return [event.seconds for event in events if event.seconds is not None]


def _kept_tick(curve: Curve, first: int, last: int) -> Tick | None:
    if curve.kept_step is None:
        return None
    return Tick(share(curve.kept_step, first, last), f"the result is made of the weights of step {curve.kept_step:,}")


def _token_ticks(curve: Curve, steps: Sequence[Tick], first: int, last: int) -> list[Tick]:
    """Tokens trained on up to each labelled step, taken from the nearest step that was logged."""
    known = {0: 0.0, **dict(curve.tokens), **{v.step: v.tokens for v in curve.validations}}
    if not any(known.values()):
        return []
    ticks = []
    for tick in steps:
        step = first + tick.position * (last - first)
        nearest = min(known, key=lambda other: abs(other - step))
        ticks.append(Tick(tick.position, count(known[nearest])))
    return ticks


def resource_charts(samples: Samples, events: Sequence[Event]) -> list[Chart]:
    """A chart over time for each kind of memory and for the disk, up to its limit if it has one.

    Args:
        samples: Memory and disk over time.
        events: The events.
    """
    table = (
        ("GPU memory", samples.device, samples.device_limit),
        ("Host memory", samples.host, samples.host_limit),
        ("Memory of this process", samples.process, 0.0),
        ("Shared memory (/dev/shm)", samples.shared_memory, samples.shared_memory_limit),
        ("Disk", samples.disk, samples.disk_limit),
    )
    end = max(samples.seconds[-1], 1.0)
    marks = [
        Tick(share(e.seconds, 0, end), f"{duration(e.seconds)}: {e.text}")
        for e in events
        if e.kind in _MARKED and e.seconds is not None
    ]
    charts = []
    for title, values, limit in table:
        if not values:
            continue
        peak = max(values)
        high, labels = (limit, limit_ticks(limit)) if limit else scale(0.0, peak)[1:]
        line = path(thinned(list(zip(samples.seconds, values, strict=True))), (0.0, end, 0.0, high))
        of = f" of {gib(limit)} GiB ({peak / limit:.0%})" if limit else " GiB"
        lines = [("area", f"{line} L {WIDTH:g} {HEIGHT:g} L 0 {HEIGHT:g} Z"), ("main", line)]
        is_full = bool(limit) and peak / limit >= _NEARLY_FULL and values is not samples.device
        charts.append(Chart(title, f"at most {gib(peak)}{of}", lines, time_ticks(end), labels, marks, [], is_full))
    return charts


def _split(losses: Sequence[tuple[int, float]]) -> tuple[list[Point], list[list[Point]]]:
    """The finite losses of the steps that led to the result, and those of each stretch of steps that was undone."""
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

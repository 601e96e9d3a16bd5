"""The parts of a training's page that are drawn of its lines: how far it is, its speed, memory, hours and events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from thriftune.gpu_hours import GpuHours
from thriftune.training import report
from thriftune.training.charts import Chart, duration
from thriftune.training.held_out import ACCURACY, GENERAL_LOSS, MACRO_F1
from thriftune.training.lines import Kind, Line, by_step
from thriftune.training.live import Progress, Remaining, progress_of
from thriftune.training.live_charts import charts_of, memory_chart
from thriftune.training.report import Curve, Event, EventKind
from thriftune.training.result import TrainingResult, Validation
from thriftune.training_plan import TrainingPlan

_EVENTS: dict[Kind, EventKind] = {
    "began": "started",
    "training": "resumed",
    "saved": "checkpoint",
    "skipped": "rolled back",
    "interrupted": "interrupted",
    "again": "interrupted",
    "stopped": "stopped",
    "failed": "stopped",
    "finished": "finished",
}
_CPU, _GPU = "Hours of worker processes", "GPU-hours"


@dataclass(frozen=True)
class Live:
    """What a page says that is drawn of lines.

    Attributes:
        status: What the training does now, as a sentence; empty for a finished one.
        refresh_seconds: After how long a browser loads the page again; 0 for never.
        made: When the page was made, as text.
        cards: Label, value and note of each number.
        charts: Speed, learning rate and what else there is, over steps.
        memory: Memory that is planned and measured, over time; None where none was measured.
        hours: A name, hours and a note each.
        hours_of: What has these hours.
    """

    status: str
    refresh_seconds: int
    made: str
    cards: list[tuple[str, str, str]]
    charts: list[Chart]
    memory: Chart | None
    hours: list[tuple[str, str, str]] = field(default_factory=list)
    hours_of: str = _GPU


def page_of(
    run_name: str,
    plan: TrainingPlan,
    lines: Sequence[Line],
    now: float,
    *,
    ranks: Sequence[Line] = (),
    refresh_seconds: int = 0,
) -> str:
    """The page of a training that goes on, or that ended without a result.

    Args:
        run_name: Name of the run.
        plan: Its plan.
        lines: Its lines.
        now: The present time, in seconds since 1970.
        ranks: Lines of other ranks of the same node, which have their memory.
        refresh_seconds: After how long a browser loads the page again; 0 for never.
    """
    progress = progress_of(plan, lines, now)
    live = Live(
        status=progress.status,
        refresh_seconds=refresh_seconds,
        made=f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC",
        cards=list(_cards(plan, progress)),
        charts=charts_of(lines),
        memory=memory_chart(plan, lines, ranks),
        hours=hours_rows(progress.hours) if progress.hours else [],
        hours_of=_hours_of(plan),
    )
    return report.html(run_name, curve_of(lines), None, events_of(lines), live)


def page_of_result(
    run_name: str, plan: TrainingPlan, result: TrainingResult, lines: Sequence[Line], ranks: Sequence[Line] = ()
) -> str:
    """The page of a training that has its result.

    Args:
        run_name: Name of the run.
        plan: Its plan.
        result: What was measured.
        lines: Its lines; without any, the page shows the result alone.
        ranks: Lines of other ranks of the same node.
    """
    if not lines:
        return report.page_of(run_name, result)
    live = Live(
        status="",
        refresh_seconds=0,
        made="",
        cards=[],
        charts=charts_of(lines),
        memory=memory_chart(plan, lines, ranks),
        hours=hours_rows(result.gpu_hours) if result.gpu_hours else [],
        hours_of=_hours_of(plan),
    )
    of_result = report.events_of(result)
    loaded = [line.at for line in lines if line.kind == "loading"]
    offset = loaded[-1] - lines[0].at if loaded else 0.0
    warnings = [Event(None, offset + (e.seconds or 0.0), e.kind, e.text) for e in of_result if e.kind == "warning"]
    events = [*events_of(lines), *warnings, *(event for event in of_result if event.kind == "halved")]
    return report.html(run_name, report.curve_of(result), result.resources, events, live, of_result)


def curve_of(lines: Sequence[Line]) -> Curve:
    """The losses in lines.

    Args:
        lines: The lines of a training.
    """
    validations = {
        line.step: Validation(
            line.step,
            line.values.get("tokens", 0.0),
            line.values["loss"],
            line.values.get(ACCURACY),
            line.values.get(MACRO_F1),
            line.values.get(GENERAL_LOSS),
        )
        for line in lines
        if line.kind == "validation" and "loss" in line.values
    }
    unit = "rows" if any(validation.accuracy is not None for validation in validations.values()) else "tokens"
    tokens = by_step(lines, "tokens")
    return Curve(by_step(lines, "loss"), list(validations.values()), tokens, None, unit)


def events_of(lines: Sequence[Line]) -> list[Event]:
    """The events in lines, at seconds since the first of them.

    Args:
        lines: The lines of a training.
    """
    found: list[Event] = []
    attempts = 0
    for line in lines:
        kind, text = _EVENTS.get(line.kind), line.text
        if line.kind == "began":
            attempts += 1
            text = f"Attempt {attempts} began."
        if line.kind == "loading" and attempts and found and found[-1].kind not in ("started", "resumed"):
            kind, text = "started", "Its processes were started again."
        if kind is None or (kind == "resumed" and not text):
            continue
        step = line.step if line.kind in ("training", "saved", "skipped") else None
        found.append(Event(step, line.at - lines[0].at, kind, text or f"{kind.capitalize()}."))
    return found


def hours_rows(hours: GpuHours) -> list[tuple[str, str, str]]:
    """GPU-hours as rows of a table: a name, hours, and what they are.

    Args:
        hours: The hours.
    """
    planned = "unknown" if hours.planned is None else _hours(hours.planned)
    return [
        ("planned", planned, "by the plan, for the whole run"),
        ("used", _hours(hours.used), "held by all attempts, from the start of each task"),
        ("lost to faults", _hours(hours.faults), "attempts that left nothing, steps that were done again, restarts"),
        ("lost to waiting", _hours(hours.waiting), _waits(hours)),
    ]


def _waits(hours: GpuHours) -> str:
    return (
        f"{_hours(hours.starting)} for the start of attempts, {_hours(hours.layers)} for other layers, "
        f"{_hours(hours.between)} between attempts, which are not in what is used"
    )


def _hours(hours: float) -> str:
    """Hours of devices as text, or minutes or seconds of them below one."""
    if hours >= 1 or not hours:
        return f"{hours:,.1f} h" if hours else "0"
    return f"{60 * hours:.0f} min" if hours >= 0.05 else f"{3600 * hours:.0f} s"


def _hours_of(plan: TrainingPlan) -> str:
    return _GPU if plan.hardware.is_gpu else _CPU


def _cards(plan: TrainingPlan, progress: Progress) -> list[tuple[str, str, str]]:
    """What a reader looks at first."""
    steps = f"of {progress.steps:,}" if progress.steps else ""
    cards = [("Step", f"{progress.step:,}", f"{steps}, {duration(progress.seconds)} since the start".lstrip(", "))]
    if progress.remaining:
        cards.append(_eta(progress.remaining))
    if progress.tokens_per_second is not None and progress.seconds_per_step is not None:
        planned = f"; {plan.time.tokens_per_second:,.0f} planned" if plan.time else ""
        note = f"tokens per second{planned}; {progress.seconds_per_step:.3g} s a step"
        cards.append(("Speed", f"{progress.tokens_per_second:,.0f}", note))
    if progress.hours:
        attempts = "1 attempt" if progress.attempts == 1 else f"{progress.attempts} attempts"
        planned = "" if progress.hours.planned is None else f"of {_hours(progress.hours.planned)} planned, "
        cards.append((_hours_of(plan), _hours(progress.hours.used), f"{planned}{attempts}"))
    price = f"{plan.price_per_hour:,.2f} {plan.currency} an hour"
    cost = (f"{progress.cost:,.2f} {plan.currency}", price) if plan.price_per_hour else ("nothing", "your own machine")
    return [*cards, ("Cost so far", *cost)]


def _eta(remaining: Remaining) -> tuple[str, str, str]:
    span = f"{duration(remaining.low)} to {duration(remaining.high)}"
    return "Left", duration(remaining.seconds), f"{span}; {remaining.leans_on}"

"""A calibration for people: what was planned and what was measured, side by side."""

from collections.abc import Iterator

from thriftune import pages
from thriftune.planning.ledger import Quantity, Record
from thriftune.planning.report import machines
from thriftune.planning.verdict import sentence
from thriftune.training_plan import TrainingPlan

COLUMNS = ("", "planned", "measured", "off")
_NAMES: dict[Quantity, str] = {
    "allocated_gib": "allocated, GiB",
    "reserved_gib": "reserved by torch, GiB",
    "context_gib": "beside torch, GiB",
    "seconds_per_step": "seconds per step",
    "tokens_per_second": "tokens per second",
    "startup_seconds": "fetching and loading, seconds",
}


def rows(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """What a record compares: a name, the planned and the measured value, and how far the plan was off.

    Args:
        record: The record of a calibration.
    """
    for quantity, name in _NAMES.items():
        planned, measured = record.planned.value(quantity), record.measured.value(quantity)
        if planned is None and measured is None:
            continue
        off = f"{planned / measured - 1:+.0%}" if planned and measured else ""
        yield name, _shown(planned), _shown(measured), off


def text(name: str, plan: TrainingPlan, record: Record) -> str:
    """The same as lines of text, with what was calibrated.

    Args:
        name: Name of the run.
        plan: The plan that was calibrated.
        record: The record.
    """
    table = [COLUMNS, *rows(record)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([f"{name}: {headline(plan)}", *(line.rstrip() for line in lines)])


def page_of(name: str, plan: TrainingPlan, record: Record) -> str:
    """The same as a page.

    Args:
        name: Name of the run.
        plan: The plan that was calibrated.
        record: The record.
    """
    return pages.render(
        "planning/calibrated.html.jinja", {}, name=name, headline=headline(plan), columns=COLUMNS, rows=rows(record)
    )


def headline(plan: TrainingPlan) -> str:
    """What was calibrated, and what was known of its memory before.

    Args:
        plan: The plan that was calibrated.
    """
    before = plan.memory.verdict
    known = f"; before: {before.answer}, {sentence(before)}" if before is not None else ""
    return f"calibrated on {machines(plan)}, micro batch {plan.micro_batch}{known}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"

"""The plan of a sweep as a table for the terminal and as a page: each trial, its node, and what it should take."""

import io
import json

from thriftune import pages
from thriftune.config.trials import written
from thriftune.planning.report import machines
from thriftune.planning.time.report import hours as hours_text
from thriftune.sweeps.cost import Expected
from thriftune.sweeps.rounds import LeftOut, PlannedRound, PlannedTrial

_COLUMNS = 160
_HEADER = ("trial", "sets", "node", "at a time", "memory", "time", "cost")
_HALF_A_MINUTE = 1 / 120  # hours; less would be shown as 0 min


def cells_of(planned: PlannedRound) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of the table: the trials of a round, those that are left out at the end.

    Args:
        planned: The round.
    """
    rows = [*(_row(planned, trial) for trial in planned.trials), *map(_row_left_out, planned.left_out)]
    if any(row[-1] for row in rows):
        return _HEADER, rows
    return _HEADER[:-1], [row[:-1] for row in rows]  # nothing costs anything on this machine


def plan_text(planned: PlannedRound, name: str, whole: Expected | None, currency: str) -> str:
    """The plan as plain text of at most 160 columns.

    Args:
        planned: The round.
        name: Name of the sweep.
        whole: What all of it is expected to take; None where that is not known.
        currency: Currency of the prices.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, (header, rows) = Table(), cells_of(planned)
    for label in header:
        table.add_column(label, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_COLUMNS, force_terminal=False)
    console.print(Text(headline(planned, name, whole, currency)), table, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def plan_page(planned: PlannedRound, name: str, whole: Expected | None, currency: str) -> str:
    """The plan as one HTML page.

    Args:
        planned: The round.
        name: Name of the sweep.
        whole: What all of it is expected to take; None where that is not known.
        currency: Currency of the prices.
    """
    line = headline(planned, name, whole, currency)
    header, rows = cells_of(planned)
    return pages.render("sweeps/plan.html.jinja", {}, name=name, headline=line, header=header, rows=rows)


def headline(planned: PlannedRound, name: str, whole: Expected | None, currency: str) -> str:
    """The plan in one line.

    Args:
        planned: The round.
        name: Name of the sweep.
        whole: What all of it is expected to take; None where that is not known.
        currency: Currency of the prices.
    """
    nodes = _counted(len(planned.packs) + len(planned.alone), "node")
    if whole is None:
        taken = "what they take is not known"
    else:
        price = f" and {whole.cost:,.2f} {currency}" if whole.cost else ""
        taken = f"{_counted(whole.trials, 'trial')} in all, about {_taken(whole.hours)}{price}"
    left = f"; {_counted(len(planned.left_out), 'trial')} left out" if planned.left_out else ""
    return f"{name}: {_counted(len(planned.trials), 'trial')} now, on {nodes}{left}; {taken}"


def _row(planned: PlannedRound, trial: PlannedTrial) -> tuple[str, ...]:
    plan, pack = trial.plan, planned.pack_of(trial.number)
    hours = plan.time.hours if plan.time else None
    cost = f"{hours * plan.price_per_hour:,.2f} {plan.currency}" if hours is not None and plan.price_per_hour else ""
    return (
        str(trial.number),
        written(trial.values),
        f"{pack.node.instance}{', shared' if len(pack.numbers) > 1 else ''}" if pack else machines(plan),
        str(pack.slots) if pack else "1",
        f"{plan.memory.device_gib:.1f} GiB",
        _taken(hours) if hours is not None else "",
        cost,
    )


def _row_left_out(one: LeftOut) -> tuple[str, ...]:
    return (str(one.number), written(json.loads(one.settings)), f"left out: {one.reason}", "", "", "", "")


def _taken(hours: float) -> str:
    return hours_text(hours) if hours > _HALF_A_MINUTE else "a minute or less"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"

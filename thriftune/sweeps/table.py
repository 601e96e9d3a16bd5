"""The trials of a sweep as a table: what each set, and what came of it."""

import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from thriftune.config.sweep import HELD_OUT_LOSS, SweepRun
from thriftune.config.trials import shown
from thriftune.sweeps.choosing import best_of
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.rounds import LeftOut, SoFar, Tried
from thriftune.training.charts import duration

_COLUMNS = 160
_LEAST_SHOWN = 0.005  # less than that would be shown as 0.00
_SECONDS_PER_HOUR = 3600
LEFT_OUT = "left out"
_COST = "cost"


@dataclass(frozen=True)
class TrialRow:
    """One trial in the table of a sweep.

    Attributes:
        number: Its number.
        settings: What it set, as text by key of the run file.
        status: trained, stopped, failed, unknown, or left out because it could not be trained.
        before: Held-out loss before the first step, in nats; None if not measured.
        after: Held-out loss of the result, or of the last validation of a trial that was stopped; None if not measured.
        score: What it is judged by; None if it has none.
        hours: Hours that it had its devices.
        cost: Their price.
        is_served: Whether an earlier run had trained it.
        is_best: Whether it is the best.
        model: URL or path of its model or adapter; empty unless it trained.
        error: Why it failed or was left out, in one line; empty otherwise.
    """

    number: int
    settings: dict[str, str]
    status: str
    before: float | None = None
    after: float | None = None
    score: float | None = None
    hours: float = 0.0
    cost: float = 0.0
    is_served: bool = False
    is_best: bool = False
    model: str = ""
    error: str = ""


@dataclass(frozen=True)
class SweepTable:
    """What came of a sweep.

    Attributes:
        name: Name of the sweep.
        metric: What its trials are judged by.
        currency: Currency of the costs.
        rows: The trials, in their order.
        best: Number of the best; None if none trained.
        ended: Why no more trials were started; empty if all were.
    """

    name: str
    metric: str
    currency: str
    rows: list[TrialRow] = field(default_factory=list)
    best: int | None = None
    ended: str = ""

    @property
    def cost(self) -> float:
        """What all of it cost, as far as it was measured."""
        return sum(row.cost for row in self.rows)

    def as_json(self) -> str:
        """All of it as JSON text; numbers that are not finite are none."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n"


def table_of(run: SweepRun, found: SoFar) -> SweepTable:
    """The table of a sweep.

    Args:
        run: The sweep.
        found: What came of it.
    """
    best = best_of(found.outcomes, found.scores, is_higher_better=found.is_higher_better)
    rows = [*(_row(one, best) for one in found.tried), *map(_row_left_out, found.left_out)]
    currency = next((one.trial.plan.currency for one in found.tried), "")
    in_order = sorted(rows, key=lambda row: row.number)
    return SweepTable(run.name, run.sweep.metric, currency, in_order, best, found.ended)


def text_of(table: SweepTable) -> str:
    """The table as plain text of at most 160 columns.

    Args:
        table: The table.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, cells = cells_of(table)
    drawn = Table()
    for label in header:
        drawn.add_column(label, overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_COLUMNS, force_terminal=False)
    console.print(Text(headline(table)), drawn, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def headline(table: SweepTable) -> str:
    """What came of a sweep, in one line."""
    trained = sum(row.status == "trained" for row in table.rows)
    served = sum(row.is_served for row in table.rows)
    known = f", {served} of them by an earlier run" if served else ""
    best = f"the best is trial {table.best}" if table.best is not None else "none can be the best"
    ended = f" No more were started: {table.ended}." if table.ended else ""
    return f"{table.name}: {trained} of {len(table.rows)} trials trained{known}; {best} by {table.metric}.{ended}"


def cells_of(table: SweepTable) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of the table, as text. A setting that no trial has in another way is a column too."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row.settings))
    is_scored = table.metric != HELD_OUT_LOSS
    scored = [table.metric] if is_scored else []
    header = ["trial", *keys, "loss before", "after", *scored, "status", "time", _COST, ""]
    cells = [_cells(row, keys, table.currency, is_scored=is_scored) for row in table.rows]
    if not table.cost:  # on this machine
        place = header.index(_COST, len(header) - 2)
        return _without(header, place), [_without(row, place) for row in cells]
    return header, cells


def _without(cells: list[str], place: int) -> list[str]:
    return cells[:place] + cells[place + 1 :]


def _cells(row: TrialRow, keys: Iterable[str], currency: str, *, is_scored: bool) -> list[str]:
    cost = "" if row.is_served else _money(row.cost, currency)
    status = f"{row.status} before" if row.is_served else row.status
    scored = [_number(row.score)] if is_scored else []
    values = [row.settings.get(key, "") for key in keys]
    said = "best" if row.is_best else row.error
    took = duration(_SECONDS_PER_HOUR * row.hours) if row.hours else ""
    return [str(row.number), *values, _number(row.before), _number(row.after), *scored, status, took, cost, said]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _money(cost: float, currency: str) -> str:
    if not cost:
        return ""
    return f"{'<0.01' if cost < _LEAST_SHOWN else f'{cost:,.2f}'} {currency}"


def _row(one: Tried, best: int | None) -> TrialRow:
    outcome = one.outcome
    return TrialRow(
        number=outcome.number,
        settings={key: shown(value) for key, value in one.trial.values.items()},
        status=outcome.status,
        before=_before(outcome),
        after=_after(outcome),
        score=one.score,
        hours=outcome.seconds / _SECONDS_PER_HOUR,
        cost=one.cost,
        is_served=outcome.is_served,
        is_best=outcome.number == best,
        model=outcome.model,
        error=outcome.error,
    )


def _row_left_out(one: LeftOut) -> TrialRow:
    settings = {key: shown(value) for key, value in json.loads(one.settings).items()}
    return TrialRow(one.number, settings, LEFT_OUT, error=one.reason)


def _before(outcome: Outcome) -> float | None:
    if outcome.training is not None:
        return outcome.training.before.loss if outcome.training.before else None
    return outcome.losses[0] if outcome.losses and outcome.steps[0] == 0 else None


def _after(outcome: Outcome) -> float | None:
    if outcome.training is not None:
        return outcome.training.after.loss
    return outcome.losses[-1] if outcome.losses and outcome.steps[-1] else None


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

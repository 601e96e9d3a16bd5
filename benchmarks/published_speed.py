"""The planner's time of a step against speeds that others published, without a fit to the row that is predicted.

    python benchmarks/published_speed.py            (the table, on the screen; pure computing, no GPU, a minute)
    python benchmarks/published_speed.py --write    (into docs/time.md)

What a device reaches of the peaks in its data sheet is the one thing that is fitted. For each row it is fitted anew, to
the other rows of that device; where there are none, it is the planner's assumption for any device. The rows are in
published_rows.py. A source that does not say how many tokens its runs had is given one number for all of them, from its
other rows on devices that also have rows with known tokens.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import published_fit as fit
from published_fit import Predicted
from published_rows import LISTED, SHARED

PAGE = Path(__file__).parent.parent / "docs" / "time.md"
START, END = "<!-- published: written by benchmarks/published_speed.py -->\n", "<!-- end of published -->"
_OWN_RUNS = 3
_GOAL = 0.25
_CLEARLY = 1.1  # rows that are closer than this have no order


def by_ledger(index: int, used: Sequence[int]) -> Predicted:
    """What the planner says of a row, with the shares of devices.yaml, once a ledger has some runs of its device.

    Args:
        index: Of the row.
        used: The runs in the ledger: other rows of the device.
    """
    from thriftune.planning.ledger import correct
    from thriftune.planning.ledger.record import Quantities, Record
    from thriftune.planning.time.run import ERROR

    def said(of: int) -> float:
        return fit.said_of(of, fit.shipped_share(fit.ROWS[of].device), fit.scale_without(index))

    records = [
        Record(
            when=datetime(2026, 11, 30, tzinfo=UTC),
            run=f"row-{other}",
            setup=_setup(other),
            planned=Quantities(seconds_per_step=said(other)),
            measured=Quantities(seconds_per_step=fit.ROWS[other].seconds),
        )
        for other in used
    ]
    factor = correct(records, _setup(index), "seconds_per_step", ERROR).factor
    return Predicted(fit.ROWS[index], factor * said(index), fit.shipped_share(fit.ROWS[index].device), len(used))


def _setup(index: int) -> Any:
    """A row's setup, as the ledger's records have it."""
    from thriftune.planning.ledger import Setup

    row = fit.ROWS[index]
    _, choice, _ = fit.setting(row, fit.ASSUMED)
    family, name = fit.architecture(index).family, f"{row.gpus} x {row.device}"
    return Setup(row.device, name, row.nodes, row.gpus, row.strategy, row.method, family, choice.precision, {})


def after_own_runs() -> list[Predicted]:
    """Each row of a device that has at least four, predicted with three others of it in the ledger.

    Of the sets of three among the six rows that come next, the one with the median prediction.
    """
    from thriftune.hardware import DEVICES as SHIPPED

    found = []
    for index, row in enumerate(fit.ROWS):
        others = [i for i, other in enumerate(fit.ROWS) if other.device == row.device and i != index]
        if row.device not in SHIPPED or len(others) < _OWN_RUNS:
            continue
        nearest = sorted(others, key=lambda i: (i - index) % len(fit.ROWS))[: 2 * _OWN_RUNS]
        sets = [by_ledger(index, used) for used in itertools.combinations(nearest, _OWN_RUNS)]
        found.append(sorted(sets, key=lambda one: one.seconds)[len(sets) // 2])
    return found


def in_order(found: Sequence[Predicted]) -> tuple[int, int]:
    """How many pairs of ways to do the same work are predicted in the right order, and how many there are.

    The same work is the same model, method and tokens of one source. Pairs that are closer than 10 % have no order.

    Args:
        found: The predictions.
    """

    def work(one: Predicted) -> tuple[object, ...]:
        return (str(one.row.model), one.row.method, one.row.tokens, one.row.source)

    def of_a_row(one: Predicted) -> tuple[float, float]:
        row = one.row
        rows = 1 if row.source in SHARED else row.micro_batch * row.accumulation * row.gpus * row.nodes
        return row.seconds / rows, one.seconds / rows

    right, pairs = 0, 0
    for first, second in itertools.combinations(found, 2):
        (published, predicted), (other, other_predicted) = of_a_row(first), of_a_row(second)
        if work(first) != work(second) or max(published, other) < _CLEARLY * min(published, other):
            continue
        pairs += 1
        right += (published < other) == (predicted < other_predicted)
    return right, pairs


def median_error(found: Iterable[Predicted]) -> float:
    """The median of how far predictions are off, in percent."""
    return 100 * statistics.median(one.error for one in found)


def page(found: Sequence[Predicted], own: Sequence[Predicted]) -> str:
    """What docs/time.md says of all rows.

    Args:
        found: Every row, predicted from the others.
        own: Rows predicted with runs in the ledger.
    """
    listed, (right, pairs) = found[: len(LISTED)], in_order(found)
    within = sum(one.error <= _GOAL for one in found)
    return "\n".join(
        [
            f"**Of {len(listed)} rows, each predicted without itself, the median is {median_error(listed):.1f} % off;"
            f" of all {len(found)}, {median_error(found):.1f} %, and {within} are within 25 %.**",
            f"Of {pairs} pairs of ways to do the same work, {right} are in the right order.",
            f"With three other runs of the same device in the ledger, the median of {len(own)} rows is"
            f" {median_error(own):.1f} % off.",
            "",
            "| GPUs: model, method, rows x tokens (x passes) | published | predicted | ratio | reached | from rows |",
            "|---|---|---|---|---|---|",
            *(_line(one) for one in listed),
            "",
            "More rows of the same pages:",
            "",
            "| GPUs: model, method, rows x tokens (x passes) | published | predicted | ratio | reached | from rows |",
            "|---|---|---|---|---|---|",
            *(_line(one) for one in found[len(LISTED) :]),
            "",
        ]
    )


def _line(one: Predicted) -> str:
    unit = " s of the run" if one.row.source in SHARED else " s"
    note = f" ({one.row.note})" if one.row.note else ""
    numbers = [f"{one.row.seconds:,.3g}{unit}" if one.row.seconds < 100 else f"{one.row.seconds:,.0f}{unit}"]
    numbers.append(f"{one.seconds:,.3g}" if one.seconds < 100 else f"{one.seconds:,.0f}")
    share = f"{one.share:.2f}" if one.others else f"{one.share:.2f}, assumed"
    return f"| {one.row.name}{note} | {' | '.join(numbers)} | {one.ratio:.2f} | {share} | {one.others} |"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write it into docs/time.md")
    is_written = parser.parse_args().write
    text = page([fit.predict(index) for index in range(len(fit.ROWS))], after_own_runs())
    if not is_written:
        sys.stdout.write(text)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()

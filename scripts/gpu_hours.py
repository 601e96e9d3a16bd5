"""Print the GPU-hours of all runs of a name, as those of a launch plan, from the records in a ledger.

Usage: python scripts/gpu_hours.py LEDGER [NAME ...]
    LEDGER  what THRIFTUNE_LEDGER is: a directory, s3:// or gs:// URL; outputs/ledger for local runs
    NAME    names of runs, as in their run files; all if left out
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable

from thriftune.gpu_hours import GpuHours
from thriftune.planning import ledger
from thriftune.planning.ledger import Record

_HEAD = ("run", "runs", "planned", "used", "lost to faults", "lost to waiting")


def by_name(records: Iterable[Record]) -> dict[str, list[GpuHours]]:
    """The GPU-hours of the runs of each name, of those that have them.

    Args:
        records: Records of a ledger.
    """
    found: dict[str, list[GpuHours]] = defaultdict(list)
    for record in records:
        if record.hours is not None:
            found[record.run].append(record.hours)
    return dict(found)


def table(found: dict[str, list[GpuHours]]) -> str:
    """A table with a row for each name.

    Args:
        found: The hours of the runs of each name.
    """
    rows = [_HEAD]
    for name, hours in sorted(found.items()):
        total = GpuHours.total(hours)
        planned = "unknown" if total.planned is None else f"{total.planned:,.2f}"
        spent = (f"{value:,.2f}" for value in (total.used, total.faults, total.waiting))
        rows.append((name, str(len(hours)), planned, *spent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    """Read the ledger and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger")
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    found = by_name(ledger.read(asked.ledger, most=None))
    sys.stdout.write(
        table({name: hours for name, hours in found.items() if not asked.names or name in asked.names}) + "\n"
    )


if __name__ == "__main__":
    main()

"""Rows that cannot be used: counted, listed, and refused when there are too many. None is lost silently."""

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from thriftune.errors import DataError, Problem

logger = logging.getLogger(__name__)

REJECTED = "rejected.parquet"
_SHOWN_ROWS = 5  # bad rows named in an error


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used.

    Attributes:
        source: File, glob or dataset it is in.
        row: Its number there, from 1.
        reason: Why.
    """

    source: str
    row: int
    reason: str


def require_good_rows(rejected: list[RejectedRow], total: int, max_rejected: float) -> None:
    """Refuse data with too many bad rows; say how many there are in any case.

    Args:
        rejected: The bad rows.
        total: Rows of the data.
        max_rejected: Share of them that may be bad.

    Raises:
        DataError: More are; it counts them by reason and names the first ones.
    """
    if not rejected:
        return
    reasons = ", ".join(f"{count} x {reason}" for reason, count in Counter(r.reason for r in rejected).most_common(5))
    if len(rejected) <= max_rejected * total:
        logger.warning("%d of %d rows are set aside in %s: %s", len(rejected), total, REJECTED, reasons)
        return
    problems = [
        Problem(f"{r.source}, row {r.row}", "", f"{r.reason}.", "Repair or remove the row.")
        for r in rejected[:_SHOWN_ROWS]
    ]
    share = Problem(
        "data.max_rejected",
        str(max_rejected),
        f"{len(rejected)} of {total} rows cannot be used: {reasons}.",
        "Repair the rows, or raise max_rejected to train without them.",
    )
    raise DataError([share, *problems])


def write_rejected(rejected: list[RejectedRow], file: Path) -> None:
    """List the rows that were set aside, as Parquet with the columns source, row and reason."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rejected], schema=schema), file)

"""Rows that cannot be used: counted, listed, and an error if there are too many. None is lost silently."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from thriftune.data.examples import Cause
from thriftune.errors import DataError, Problem
from thriftune.redaction import redacted

logger = logging.getLogger(__name__)

REJECTED = "rejected.parquet"
_SHOWN_REASONS = 8
_SHOWN_ROWS = 3  # rows named for each reason
_KNOWN_REASONS = 1000  # counted separately; a template can raise any number of different messages
_SPECIAL_REMEDY = "If a chat template was applied to the text already, set data.special_tokens: keep."
_OTHER = "other reasons (see " + REJECTED + ")"


@dataclass(frozen=True)
class RejectedRow:
    """A row, or a part of one, that cannot be used.

    Attributes:
        source: The file or dataset.
        row: Its number there, from 1.
        reason: Why it cannot be used.
        cause: Whether the fault lies in the row or in the chat template.
    """

    source: str
    row: int
    reason: str
    cause: Cause = "row"


class Rejections:
    """Writes rejected rows to a file as they come, and counts them by reason.

    Attributes:
        rows: Number of rows of which nothing can be used.
        reasons: Number of rows for each reason.
        causes: Where the faults lie.
    """

    rows: int
    reasons: Counter[str]
    causes: set[Cause]

    def __init__(self, file: Path) -> None:
        """Open the file: Parquet with the columns source, row and reason."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
        self._writer = pq.ParquetWriter(file, self._schema)
        self._first: defaultdict[str, list[RejectedRow]] = defaultdict(list)
        self.rows = 0
        self.reasons = Counter()
        self.causes = set()

    def add(self, rows: Sequence[RejectedRow], whole: int) -> None:
        """Add rejected rows and parts of rows.

        Args:
            rows: The rejected rows and parts.
            whole: Number of rows of which nothing can be used; only these count against the allowed share.
        """
        import pyarrow as pa

        if not rows:
            return
        # Reasons may quote a message of a template or a library.
        rows = [replace(row, source=redacted(row.source), reason=redacted(row.reason)) for row in rows]
        self._writer.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=self._schema))
        self.rows += whole
        self.causes |= {row.cause for row in rows}
        for row in rows:
            known = row.reason in self.reasons or len(self.reasons) < _KNOWN_REASONS
            reason = row.reason if known else _OTHER
            self.reasons[reason] += 1
            if len(self._first[reason]) < _SHOWN_ROWS:
                self._first[reason].append(row)

    def require_few(self, total: int, max_rejected: float) -> None:
        """Log the number of bad rows, and refuse data with too many.

        Args:
            total: Number of rows of the data.
            max_rejected: Share of them that may be bad.

        Raises:
            DataError: There are more; it counts them by reason and names the first rows of each.
        """
        rejected = self.rows
        if not self.reasons:
            return
        common = self.reasons.most_common(_SHOWN_REASONS)
        if rejected / total <= max_rejected:
            text = ", ".join(f"{count} x {reason}" for reason, count in common)
            parts = self.reasons.total() - rejected
            also = f" and {parts} parts of others" if parts else ""
            logger.warning("%d of %d rows%s are set aside in %s: %s", rejected, total, also, REJECTED, text)
            return
        share = Problem(
            "data.max_rejected",
            str(max_rejected),
            f"{rejected} of {total} rows ({rejected / total:.1%}) cannot be used.",
            "Repair the rows below, or raise max_rejected to train without them.",
        )
        raise DataError.of("too-many-rejected", [share, *(self._problem(reason, count) for reason, count in common)])

    def _problem(self, reason: str, count: int) -> Problem:
        first = self._first[reason]
        places = "; ".join(
            f"{source}, row {', '.join(str(row.row) for row in first if row.source == source)}"
            for source in dict.fromkeys(row.source for row in first)
        )
        more = f" and {count - len(first)} more" if count > len(first) else ""
        return Problem(f"{places}{more}", "", f"{reason}.", _SPECIAL_REMEDY if "special token" in reason else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

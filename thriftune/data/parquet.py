"""Rows of Parquet files and of Arrow's batches, as many at once as fit in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data.examples import RawRow, RowError
from thriftune.data.limits import READ_BYTES, ROW_BYTES, TOO_DEEP, is_too_deep, too_large
from thriftune.data.unpacking import require_plausible

if TYPE_CHECKING:
    import pyarrow as pa

_READ_ROWS = 1000  # at the most, at once
# Bytes that are no text, dates that Python has no numbers for, columns nested deeper than Python's stack.
_UNREADABLE = (ValueError, OverflowError, RecursionError)
_CELL_BYTES = 16  # of memory that a value takes, however few bytes it has in the file


def rows_of_file(file: Path, columns: Sequence[str] | None) -> Iterator[RawRow]:
    """Read a Parquet file.

    Args:
        file: A local file.
        columns: Those that are read, of those that it has; None: all.

    Yields:
        Each row, or why it cannot be used.

    Raises:
        OSError: It cannot be read, or unpacks to absurdly much.
        pyarrow.ArrowException: It is not Parquet.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        wanted = None if columns is None else [name for name in table.schema_arrow.names if name in columns]
        for lot in _lots(table.metadata, wanted):
            if lot.rows == 1 and lot.size > ROW_BYTES:
                yield RowError(too_large(lot.size))  # whose value would have to be read to be refused
                continue
            at_once = max(1, min(_READ_ROWS, READ_BYTES * lot.rows // max(lot.size, 1)))
            for batch in table.iter_batches(batch_size=at_once, row_groups=lot.groups, columns=wanted):
                yield from rows_of_batch(batch)


def rows_of_batch(batch: "pa.RecordBatch") -> Iterator[RawRow]:
    """The rows of an Arrow record batch; text that is not UTF-8, or a giant, spoils its row only.

    Args:
        batch: The rows.
    """
    try:
        rows = batch.to_pylist() if batch.nbytes <= ROW_BYTES else None
    except _UNREADABLE:
        rows = None
    if rows is not None:
        yield from map(_checked, rows)
    else:
        yield from (_row(batch.slice(index, 1)) for index in range(batch.num_rows))


def _row(batch: "pa.RecordBatch") -> RawRow:
    """The only row of a batch."""
    import pyarrow as pa

    # All that a dictionary holds counts as part of a batch, and is shared by its rows.
    sizes = [column.nbytes for column in batch.columns if not pa.types.is_dictionary(column.type)]
    if sum(sizes) > ROW_BYTES:
        return RowError(too_large(sum(sizes)))
    try:
        return _checked(batch.to_pylist()[0])
    except _UNREADABLE:
        return RowError("holds a value that is not UTF-8, or that cannot be read")


def _checked(row: dict[str, Any]) -> RawRow:
    return RowError(f"is {TOO_DEEP}") if is_too_deep(row) else row


@dataclass(frozen=True)
class _Lot:
    """Row groups that are read together: one, or several small ones.

    Attributes:
        groups: Their numbers.
        rows: Rows in them.
        size: About how much memory they take, in bytes.
    """

    groups: list[int]
    rows: int
    size: int


def _lots(metadata: Any, wanted: Sequence[str] | None) -> Iterator[_Lot]:
    lot = _Lot([], 0, 0)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, size = group.num_rows, _size(group, wanted)
        if lot.groups and (lot.rows + rows > _READ_ROWS or lot.size + size > ROW_BYTES):
            yield lot
            lot = _Lot([], 0, 0)
        lot = _Lot([*lot.groups, number], lot.rows + rows, lot.size + size)
    if lot.groups:
        yield lot


def _size(group: Any, wanted: Sequence[str] | None) -> int:
    """About how much memory the wanted columns of a row group take, in bytes.

    Raises:
        OSError: They unpack to absurdly much.
    """
    size = packed = unpacked = 0
    for index in range(group.num_columns):
        column = group.column(index)
        if wanted is None or any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in wanted):
            packed, unpacked = packed + column.total_compressed_size, unpacked + column.total_uncompressed_size
            size += column.total_uncompressed_size + _CELL_BYTES * column.num_values
    require_plausible(packed, unpacked)
    return size

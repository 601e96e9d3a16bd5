"""Rows of Parquet files and Arrow batches, as many at once as fit in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from thriftune.data.examples import RawRow, RowError
from thriftune.data.unpacking import require_plausible
from thriftune.limits import READ_BYTES, ROW_BYTES, TOO_DEEP, is_too_deep, too_large

if TYPE_CHECKING:
    import pyarrow as pa

_READ_ROWS = 1000  # most rows at once
# Bytes that are not text, dates outside Python's range, columns nested deeper than Python's stack.
_UNREADABLE = (ValueError, OverflowError, RecursionError)
_CELL_BYTES = 16  # the memory that any value takes, however small in the file
# Bytes that rows read at once may take if each repeats everything in a dictionary of the file. Dictionaries that
# libraries write by default have at most 1 MB.
_REPEATED_BYTES = 4 * READ_BYTES
_PAGE_HEADER_BYTES = 16
# Start of the header of a dictionary page (parquet.thrift, in the compact protocol): its type, 2, and then a number.
_DICTIONARY_PAGE = b"\x15\x04\x15"


def rows_of_file(file: Path, columns: Sequence[str] | None) -> Iterator[RawRow]:
    """Read a Parquet file.

    Args:
        file: A local file.
        columns: Columns to read, if the file has them; None means all.

    Yields:
        Each row, or why it cannot be used.

    Raises:
        OSError: It cannot be read, or expands too much.
        pyarrow.ArrowException: It is not Parquet.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table, file.open("rb") as stream:
        wanted = None if columns is None else [name for name in table.schema_arrow.names if name in columns]
        for lot in _lots(table.metadata, wanted, stream):
            if lot.rows == 1 and lot.size > ROW_BYTES:
                yield RowError(too_large(lot.size))  # its value would have to be read to be refused alone
                continue
            fitting = min(READ_BYTES * lot.rows // max(lot.size, 1), _REPEATED_BYTES // max(lot.repeated, 1))
            at_once = max(1, min(_READ_ROWS, fitting))
            for batch in table.iter_batches(batch_size=at_once, row_groups=lot.groups, columns=wanted):
                yield from rows_of_batch(batch)


def rows_of_batch(batch: "pa.RecordBatch") -> Iterator[RawRow]:
    """The rows of an Arrow record batch; a text that is huge or not UTF-8 only spoils its own row.

    Args:
        batch: The rows.

    Yields:
        Each row, or why it cannot be used.
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

    # A slice of a dictionary column counts the whole shared dictionary; decoded, a row counts only its own value.
    columns = (c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns)
    sizes = [column.nbytes for column in columns]
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
    """Row groups that are read together: one large or several small ones.

    Attributes:
        groups: Their numbers.
        rows: Rows in them.
        size: Approximate memory they take, in bytes, if no value is repeated.
        repeated: Bytes of shared values that each row may repeat in memory.
    """

    groups: list[int]
    rows: int
    size: int
    repeated: int


def _lots(metadata: Any, wanted: Sequence[str] | None, stream: IO[bytes]) -> Iterator[_Lot]:
    lot = _Lot([], 0, 0, 0)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = list(_columns(group, wanted))
        rows, size = group.num_rows, _size(columns)
        repeated = sum(_shared(column, stream) * -(-column.num_values // max(rows, 1)) for column in columns)
        if lot.groups and (lot.rows + rows > _READ_ROWS or lot.size + size > ROW_BYTES):
            yield lot
            lot = _Lot([], 0, 0, 0)
        lot = _Lot([*lot.groups, number], lot.rows + rows, lot.size + size, max(lot.repeated, repeated))
    if lot.groups:
        yield lot


def _columns(group: Any, wanted: Sequence[str] | None) -> Iterator[Any]:
    """The metadata of the wanted columns of a row group."""
    for index in range(group.num_columns):
        column = group.column(index)
        if wanted is None or any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in wanted):
            yield column


def _size(columns: Sequence[Any]) -> int:
    """Approximate memory of columns of a row group, in bytes.

    Args:
        columns: Metadata of the columns.

    Raises:
        OSError: They expand too much.
    """
    unpacked = sum(column.total_uncompressed_size for column in columns)
    require_plausible(sum(column.total_compressed_size for column in columns), unpacked)
    return int(unpacked + sum(_CELL_BYTES * column.num_values for column in columns))


def _shared(column: Any, stream: IO[bytes]) -> int:
    """Bytes of a column's dictionary: a text repeated by many rows is once in the file, but once per row in memory."""
    if column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return 0
    stream.seek(min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset))
    header = stream.read(_PAGE_HEADER_BYTES)
    if not header.startswith(_DICTIONARY_PAGE):
        return int(column.total_uncompressed_size) if column.has_dictionary_page else 0
    number = shift = 0
    for byte in header[len(_DICTIONARY_PAGE) :]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return number >> 1  # zigzag

"""Reading rows from files, one at a time and in bounded memory: JSON Lines, JSON, CSV, TSV, text and Parquet.

An unreadable row becomes an error in its position and does not end the file; an unreadable file raises one error.
"""

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from thriftune.config.formats import ENDINGS_IN_WORDS, ending_of
from thriftune.data import parquet
from thriftune.data.csv_rows import csv_rows
from thriftune.data.examples import RawRow, Row, RowError
from thriftune.data.json_list import items_of_list
from thriftune.data.misnamed import cause_in
from thriftune.data.unpacking import open_binary, open_text
from thriftune.errors import DataError
from thriftune.limits import COLUMNS, ROW_BYTES, TOO_DEEP, is_too_deep, too_large

SampleBy = Literal["line", "paragraph", "document"]
Columns = Sequence[str] | None
_NumberedRows = Iterator[tuple[int, RawRow]]

_ROWS_FOR_COLUMNS = 100
_OPENING_BYTES = 1 << 16
_UTF8_BOM = b"\xef\xbb\xbf"


class NotAnObjectError(RowError):
    """A row that is JSON but not an object; its only argument is the value."""

    @property
    def value(self) -> Any:
        """The parsed value."""
        return self.args[0]

    def __str__(self) -> str:
        return f"is a JSON {type(self.value).__name__}, not an object"


def decode(raw: RawRow) -> Row:
    """A row as a mapping from columns to values.

    Args:
        raw: The row as read, or why it cannot be used.

    Raises:
        RowError: It is not a mapping, or nested too deep.
    """
    if isinstance(raw, RowError):
        raise raw
    return _parse_json_line(raw) if isinstance(raw, bytes) else raw


def _parse_json_line(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowError(f"is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise RowError(f"is {TOO_DEEP}") from error
    except ValueError as error:  # a number with thousands of digits
        raise RowError("is not JSON that can be read") from error
    return _object(value)


def _object(value: Any) -> dict[str, Any]:
    """A row from parsed JSON.

    Args:
        value: The parsed JSON.

    Raises:
        RowError: It is not an object, or nested too deep for templates, other processes and digests.
    """
    if is_too_deep(value):
        raise RowError(f"is {TOO_DEEP}")
    if not isinstance(value, dict):
        raise NotAnObjectError(value)
    return value


def _read_json_lines(file: Path, _sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    with open_binary(file) as stream:
        for number, line in enumerate(iter(partial(stream.readline, ROW_BYTES + 1), b""), 1):
            if len(line) > ROW_BYTES and not line.endswith(b"\n"):
                yield number, RowError(too_large(len(line) + _rest_of_line(stream)))
                continue
            content = line.removeprefix(_UTF8_BOM) if number == 1 else line
            if not content.isspace() and content:
                yield number, content.rstrip(b"\r\n")


def _rest_of_line(stream: IO[bytes]) -> int:
    """Read to the end of a line without keeping it; returns the number of bytes."""
    size = 0
    while part := stream.readline(ROW_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _read_json(file: Path, sample_by: SampleBy, columns: Columns) -> _NumberedRows:
    """Read a list of objects; or JSON Lines, which many people write with this ending too."""
    with open_binary(file) as stream:
        opening = stream.read(1 << 16).removeprefix(_UTF8_BOM).lstrip()[:1]
    if opening != b"[":
        yield from _read_json_lines(file, sample_by, columns)
        return
    with open_text(file) as stream:
        try:
            for number, value in enumerate(items_of_list(stream), 1):
                try:
                    yield number, _object(value)
                except RowError as error:
                    yield number, error
        except RecursionError as error:
            raise unreadable(file, "JSON", f"an item is {TOO_DEEP}") from error
        except ValueError as error:
            raise unreadable(file, "JSON", error) from error


def _read_csv(file: Path, _sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    kind = _reader_of(file).name
    with open_text(file) as stream:
        try:
            yield from csv_rows(stream, "\t" if kind == "TSV" else ",")
        except ValueError as error:
            raise unreadable(file, "CSV", error) from error


def _read_text(file: Path, sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    with open_text(file) as stream:
        number, row, starts_line = 0, _TextRow(sample_by), True
        for piece in itertools.chain(iter(partial(stream.readline, ROW_BYTES + 1), ""), [""]):
            is_blank = not piece or (starts_line and piece.isspace())
            starts_line = piece.endswith(("\n", "\r"))
            if sample_by == "document" or not is_blank:
                row.add(piece)
            ends = {"document": not piece, "paragraph": is_blank, "line": starts_line or not piece}
            if ends[sample_by] and row.size:
                if (raw := row.read()) is not None:
                    number += 1
                    yield number, raw
                row = _TextRow(sample_by)


class _TextRow:
    """A row of text, collected piece by piece; beyond the limit, pieces are only counted."""

    def __init__(self, sample_by: SampleBy) -> None:
        self.size = 0
        self._is_document = sample_by == "document"
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        self.size += len(piece)
        if self.size <= ROW_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def read(self) -> RawRow | None:
        """The row; None for a document that is only white space."""
        if self.size > ROW_BYTES:
            remedy = "; data.sample_by: paragraph cuts a file into rows" if self._is_document else ""
            return RowError(too_large(self.size) + remedy)
        text = "".join(self._pieces)
        if self._is_document:
            return {"text": text} if not text.isspace() else None
        return {"text": text.rstrip("\r\n")}


def _read_parquet(file: Path, _sample_by: SampleBy, columns: Columns) -> _NumberedRows:
    yield from enumerate(parquet.rows_of_file(file, columns), 1)


@dataclass(frozen=True)
class _Reader:
    name: str
    read: Callable[[Path, SampleBy, Columns], _NumberedRows]


READERS = {
    ".jsonl": _Reader("JSON Lines", _read_json_lines),
    ".json": _Reader("JSON", _read_json),
    ".csv": _Reader("CSV", _read_csv),
    ".tsv": _Reader("TSV", _read_csv),
    ".txt": _Reader("text", _read_text),
    ".parquet": _Reader("Parquet", _read_parquet),
}


def read_file(file: Path, sample_by: SampleBy = "paragraph", columns: Columns = None) -> Iterator[tuple[int, RawRow]]:
    """Read the rows of a file.

    Args:
        file: A local file whose ending is in `ENDINGS`.
        sample_by: What a row of a text file is.
        columns: Columns to read from a Parquet file, where unneeded columns cost time and may be bad; None means all.

    Yields:
        The number of each row and the row. Rows count from 1; in JSON Lines they are numbered by line, in CSV from
        the one after the header.

    Raises:
        DataError: The file cannot be read.
    """
    import pyarrow as pa

    reader = _reader_of(file)
    try:
        _require_kind(file, reader.name)
        yield from reader.read(file, sample_by, columns)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise unreadable(file, reader.name, error) from error


def count_rows(file: Path, sample_by: SampleBy = "paragraph") -> int:
    """Number of rows that `read_file` yields."""
    if ending_of(file.name) == ".parquet":
        return int(_parquet_metadata(file).num_rows)
    return sum(1 for _ in read_file(file, sample_by))


def columns_of(file: Path, sample_by: SampleBy = "paragraph") -> list[str]:
    """The columns of a file, from its header or schema, or from its first hundred rows if each row has its own."""
    if ending_of(file.name) == ".parquet":
        return [str(name) for name in _parquet_metadata(file).schema.to_arrow_schema().names]
    names: dict[str, None] = {}
    first_error = ""
    for number, raw in itertools.islice(read_file(file, sample_by), _ROWS_FOR_COLUMNS):
        if len(names) > COLUMNS:
            break
        try:
            names |= dict.fromkeys(decode(raw))
        except RowError as error:
            first_error = first_error or f"row {number} {error}"
    if first_error and not names:
        raise unreadable(file, _reader_of(file).name, f"none of its first rows can be read, {first_error}")
    return list(names)


def _require_kind(file: Path, kind: str) -> None:
    """Refuse a file whose content does not match its name.

    Args:
        file: The file.
        kind: The type that its name implies.

    Raises:
        DataError: It starts like another type; the message says which.
    """
    with open_binary(file) as stream:
        opening = stream.read(_OPENING_BYTES)
        cause = cause_in(opening, kind, is_whole=len(opening) < _OPENING_BYTES)
    if cause:
        raise DataError.single("data.source", file, f"could not be read as {kind}: {cause.what}.", cause.remedy)


def _parquet_metadata(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _require_kind(file, "Parquet")
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, "Parquet", error) from error


def _reader_of(file: Path) -> _Reader:
    ending = ending_of(file.name)
    if ending is None:
        raise unreadable(file, "rows", f"it does not end in {ENDINGS_IN_WORDS}")
    return READERS["." + ending.split(".")[1]]


def unreadable(file: Path, kind: str, why: object) -> DataError:
    """The error for a file that cannot be read as the type that its name implies."""
    remedy = "Repair the file, or write JSON Lines, where a bad row does not affect others."
    return DataError.single(
        "data.source", file, f"could not be read as {kind}: {why}.", remedy if kind == "JSON" else "Repair the file."
    )

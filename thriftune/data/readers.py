"""Rows out of files, one at a time and in bounded memory: JSON Lines, JSON, CSV, TSV, text and Parquet.

A row that cannot be read is an error in its place, never the end of the file; one error says why a file cannot be.
"""

import csv
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from thriftune.data.examples import Row, RowError
from thriftune.data.json_list import items_of_list
from thriftune.data.misnamed import cause_in
from thriftune.errors import DataError
from thriftune.remote import path_of

SampleBy = Literal["line", "paragraph", "document"]
# A line of JSON stays bytes until a worker parses it.
RawRow = bytes | dict[str, Any] | RowError
Columns = Sequence[str] | None
_NumberedRows = Iterator[tuple[int, RawRow]]

_READ_ROWS = 1000
_ROWS_FOR_COLUMNS = 100
_OPENING_BYTES = 1 << 16
_UTF8_BOM = b"\xef\xbb\xbf"
_COMPRESSIONS = (".gz", ".zst")


class NotAnObjectError(RowError):
    """A row that is JSON, and no object; its only argument is what it is."""

    @property
    def value(self) -> Any:
        """What it is."""
        return self.args[0]

    def __str__(self) -> str:
        return f"is a JSON {type(self.value).__name__}, not an object"


def decode(raw: RawRow) -> Row:
    """A row as a mapping from columns to values.

    Raises:
        RowError: It is not one.
    """
    if isinstance(raw, RowError):
        raise raw
    if isinstance(raw, bytes):
        raw = _parse_json_line(raw)
    return raw


def _parse_json_line(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowError(f"is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise RowError("is not JSON that can be read") from error
    if not isinstance(value, dict):
        raise NotAnObjectError(value)
    return value


def _read_json_lines(file: Path, _sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    with _open_binary(file) as stream:
        for number, line in enumerate(stream, 1):
            content = line.removeprefix(_UTF8_BOM) if number == 1 else line
            if not content.isspace() and content:
                yield number, content.rstrip(b"\r\n")


def _read_json(file: Path, sample_by: SampleBy, columns: Columns) -> _NumberedRows:
    """A list of objects; or JSON Lines, which many write under this ending too."""
    with _open_binary(file) as stream:
        opening = stream.read(1 << 16).removeprefix(_UTF8_BOM).lstrip()[:1]
    if opening != b"[":
        yield from _read_json_lines(file, sample_by, columns)
        return
    with _open_text(file) as stream:
        try:
            for number, value in enumerate(items_of_list(stream), 1):
                yield number, value if isinstance(value, dict) else NotAnObjectError(value)
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, "JSON", error) from error


def _read_csv(file: Path, _sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    """Every value is text: an answer "NA" is not missing, and "007" is not the number 7."""
    csv.field_size_limit(sys.maxsize)
    with _open_text(file) as stream:
        reader = csv.reader(stream, delimiter="\t" if _reader_of(file).name == "TSV" else ",", strict=True)
        try:
            header = next(filter(None, reader), [])
        except csv.Error as error:
            raise _unreadable(file, "CSV", f"its header is none ({error})") from error
        if repeated := {name or "a column without a name" for name in header if header.count(name) > 1}:
            raise _unreadable(file, "CSV", f"its header has {', '.join(sorted(repeated))} more than once")
        number = 0
        while True:
            number, line = number + 1, reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    why = f"the quote that opens in line {line} is never closed"
                    raise _unreadable(file, "CSV", why) from error
                yield number, RowError(f"is not CSV ({error}){_lines(line, reader.line_num)}")
                continue
            if not fields:
                number -= 1  # an empty line is no row
            elif len(fields) != len(header):
                found = f"has {len(fields)} fields, and the header has {len(header)}"
                yield number, RowError(found + _lines(line, reader.line_num))
            else:
                yield number, dict(zip(header, fields, strict=True))


def _lines(first: int, last: int) -> str:
    """Where a bad row lies that took up several lines: a stray quote may have swallowed good ones."""
    return f", from line {first} to {last}" if last > first else ""


def _read_text(file: Path, sample_by: SampleBy, _columns: Columns) -> _NumberedRows:
    with _open_text(file) as stream:
        if sample_by == "document":
            text = stream.read()
            if text and not text.isspace():
                yield 1, {"text": text}
            return
        number, paragraph = 0, ""
        for line in itertools.chain(stream, [""]):
            is_empty = not line or line.isspace()
            if not is_empty:
                paragraph += line
            if paragraph and (is_empty or sample_by == "line"):
                number += 1
                yield number, {"text": paragraph.rstrip("\r\n")}
                paragraph = ""


def _read_parquet(file: Path, _sample_by: SampleBy, columns: Columns) -> _NumberedRows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        number = 0
        wanted = None if columns is None else [name for name in table.schema_arrow.names if name in columns]
        for batch in table.iter_batches(batch_size=_READ_ROWS, columns=wanted):
            for row in rows_of_batch(batch):
                number += 1
                yield number, row


def rows_of_batch(batch: Any) -> Iterator[RawRow]:
    """The rows of an Arrow record batch; text that is not UTF-8 spoils its row only."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # bytes that are no text, dates that Python has no numbers for
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError):
                yield RowError("holds a value that is not UTF-8, or that cannot be read")


@dataclass(frozen=True)
class _Reader:
    name: str
    read: Callable[[Path, SampleBy, Columns], _NumberedRows]
    may_be_compressed: bool = True


READERS = {
    ".jsonl": _Reader("JSON Lines", _read_json_lines),
    ".json": _Reader("JSON", _read_json),
    ".csv": _Reader("CSV", _read_csv),
    ".tsv": _Reader("TSV", _read_csv),
    ".txt": _Reader("text", _read_text),
    ".parquet": _Reader("Parquet", _read_parquet, may_be_compressed=False),
}
ENDINGS = tuple(
    f"{ending}{compression}"
    for ending, reader in READERS.items()
    for compression in ("", *_COMPRESSIONS)
    if not compression or reader.may_be_compressed
)

ENDINGS_IN_WORDS = (
    f"{', '.join(ending for ending, reader in READERS.items() if reader.may_be_compressed)} (each also "
    f"{' or '.join(_COMPRESSIONS)}) or {', '.join(e for e, reader in READERS.items() if not reader.may_be_compressed)}"
)


def ending_of(path: str) -> str | None:
    """The ending in `ENDINGS` that a path, glob or URL has, or None."""
    name = path_of(path).lower().rstrip("*")
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.endswith(ending)), None)


def read_file(file: Path, sample_by: SampleBy = "paragraph", columns: Columns = None) -> _NumberedRows:
    """Read the rows of a file.

    Args:
        file: A local file whose ending is in `ENDINGS`.
        sample_by: What a row of a text file is.
        columns: What is read of a Parquet file, where columns that nobody needs cost time and can be bad; None: all.

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
        raise _unreadable(file, reader.name, error) from error


def count_rows(file: Path, sample_by: SampleBy = "paragraph") -> int:
    """How many rows `read_file` gives."""
    if ending_of(file.name) == ".parquet":
        return int(_parquet_metadata(file).num_rows)
    return sum(1 for _ in read_file(file, sample_by))


def columns_of(file: Path, sample_by: SampleBy = "paragraph") -> list[str]:
    """The columns of a file: of its header or schema, or of its first hundred rows where each row has its own."""
    if ending_of(file.name) == ".parquet":
        return [str(name) for name in _parquet_metadata(file).schema.to_arrow_schema().names]
    names: dict[str, None] = {}
    first_error = ""
    for number, raw in itertools.islice(read_file(file, sample_by), _ROWS_FOR_COLUMNS):
        try:
            names |= dict.fromkeys(decode(raw))
        except RowError as error:
            first_error = first_error or f"row {number} {error}"
    if first_error and not names:
        raise _unreadable(file, _reader_of(file).name, f"none of its first rows can be, {first_error}")
    return list(names)


def _require_kind(file: Path, kind: str) -> None:
    """Refuse a file that is something else than its name says.

    Raises:
        DataError: It begins as something else; it says as what.
    """
    with _open_binary(file) as stream:
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
        raise _unreadable(file, "Parquet", error) from error


def _reader_of(file: Path) -> _Reader:
    ending = ending_of(file.name)
    if ending is None:
        raise _unreadable(file, "rows", f"it does not end in {ENDINGS_IN_WORDS}")
    return READERS["." + ending.split(".")[1]]


def _open_binary(file: Path) -> io.BufferedReader:
    if file.suffix.lower() == ".gz":
        return cast("io.BufferedReader", gzip.open(file, "rb"))
    if file.suffix.lower() == ".zst":
        import pyarrow as pa

        # Arrow reads it, and is here anyway; Python 3.11 and fsspec would need another package for it.
        return io.BufferedReader(pa.CompressedInputStream(str(file), "zstd"))
    return file.open("rb")


def _open_text(file: Path) -> io.TextIOWrapper:
    """Text as it is, line breaks included; bytes that are not UTF-8 become surrogates, which no row may hold."""
    return io.TextIOWrapper(_open_binary(file), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _unreadable(file: Path, kind: str, why: object) -> DataError:
    remedy = "Repair the file, or write JSON Lines, where one bad row spoils no other."
    return DataError.single(
        "data.source", file, f"could not be read as {kind}: {why}.", remedy if kind == "JSON" else "Repair the file."
    )

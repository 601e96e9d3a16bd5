"""Rows of CSV, one at a time: a stray quote, or a field that never ends, is skipped without keeping it."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Self

from thriftune.data.examples import RawRow, RowError
from thriftune.limits import COLUMNS, ROW_BYTES, too_large


class _TooLargeError(Exception):
    """A row over the limit, which was read to its end; the argument is its size."""


class _Lines:
    """The lines of a file for `csv.reader`, limited in size: it would join all lines after an open quote."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self._size = self._quotes = 0
        self._starts_line = True
        self.number = 0  # of the last line read

    def begin_row(self) -> None:
        """Start a new row."""
        self._size = self._quotes = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        if self._size > ROW_BYTES:
            self._read_on(line)
            raise _TooLargeError(self._size)
        return line

    def _read(self) -> str:
        line = self._stream.readline(ROW_BYTES + 1)
        self._size += len(line)
        self._quotes += line.count('"')
        self.number += bool(line) and self._starts_line
        self._starts_line = line.endswith(("\n", "\r"))
        return line

    def _read_on(self, line: str) -> None:
        """Read to the end of the row: a line break outside quotes, which has an even number of quotes before it.

        Args:
            line: The line at which the row became too large.

        Raises:
            csv.Error: The row does not end.
        """
        while line and not (self._starts_line and self._quotes % 2 == 0):
            line = self._read()
        if self._quotes % 2:
            raise csv.Error("unexpected end of data")


def csv_rows(stream: io.TextIOBase, delimiter: str) -> Iterator[tuple[int, RawRow]]:
    """Read CSV. Every value is text: an answer "NA" is not missing, and "007" is not the number 7.

    Args:
        stream: The file, with its line breaks as they are.
        delimiter: The character between two values.

    Yields:
        The number of each row, counted from the one after the header, and the row, or why it is not one.

    Raises:
        ValueError: The file cannot be read further: its header is invalid, or a quote is never closed.
    """
    csv.field_size_limit(ROW_BYTES + 1)
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(reader)
    number = 0
    while True:
        number, line = number + 1, lines.number + 1
        lines.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _TooLargeError as error:
            yield number, RowError(too_large(error.args[0]) + _lines(line, lines.number))
            continue
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise ValueError(f"the quote that opens in line {line} is never closed") from error
            yield number, RowError(f"is not CSV ({error}){_lines(line, lines.number)}")
            continue
        if not fields:
            number -= 1  # an empty line is not a row
        elif len(fields) != len(header):
            found = f"has {len(fields)} fields, but the header has {len(header)}"
            yield number, RowError(found + _lines(line, lines.number))
        else:
            yield number, dict(zip(header, fields, strict=True))


def _header(reader: Iterator[list[str]]) -> list[str]:
    """The names of the columns.

    Args:
        reader: The CSV reader, at the start of the file.

    Raises:
        ValueError: The header cannot be read, has too many columns, or repeats a name.
    """
    try:
        header: list[str] = next(filter(None, reader), [])
    except csv.Error as error:
        raise ValueError(f"its header cannot be read ({error})") from error
    except _TooLargeError as error:
        raise ValueError(f"its header {too_large(error.args[0])}") from error
    if len(header) > COLUMNS:
        raise ValueError(f"its header has {len(header)} columns, but at most {COLUMNS} are read")
    if repeated := {name or "a column without a name" for name, count in Counter(header).items() if count > 1}:
        raise ValueError(f"its header has {', '.join(sorted(repeated))} more than once")
    return header


def _lines(first: int, last: int) -> str:
    """The lines of a bad row that covers several: a stray quote may have swallowed good rows."""
    return f", from line {first} to {last}" if last > first else ""

"""Files that hold something else than their name says: told by how they begin, with what to do about it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_UNPACK = "Unpack it."
_EXPORT = "Export it as CSV in UTF-8, or as JSON Lines."
# What files of other kinds begin with, which kind that is, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", "Name it with .gz at the end."),
    (b"\x28\xb5\x2f\xfd", "zstd", "Name it with .zst at the end."),
    (b"BZh", "bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "xz", _UNPACK),
    (b"PK\x03\x04", "a zip archive, as .zip, .xlsx and .docx files are", f"{_UNPACK} If it is a table: {_EXPORT}"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, as .xls and .doc files are", _EXPORT),
    (b"%PDF-", "a PDF", "Extract its text."),
    (b"PAR1", "Parquet", "Name it .parquet."),
    (b"ARROW1", "Arrow", "Write it as .parquet."),
    (b"SQLite format 3", "a SQLite database", _EXPORT),
    (b"version https://git-lfs", "a pointer of Git LFS, and not the file itself", "Run `git lfs pull`."),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_UTF16 = ("UTF-16", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE.")
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_CONVERSATIONS = ("messages", "conversations", "conversation")
# An object over several lines whose first key holds a list, and what that list begins with.
_FIRST_KEY = re.compile(rb'\{\s*"[^"]*"\s*:')
_FIRST_LIST = re.compile(rb'\{\s*"([^"]+)"\s*:\s*\[\s*(.)', re.DOTALL)
_ROWS_AS_LINES = "Write one object a line, or name it .json and write one list of objects."


@dataclass(frozen=True)
class Cause:
    """Why a file cannot be read as what its name says.

    Attributes:
        what: What it is.
        remedy: What to do.
    """

    what: str
    remedy: str


def cause_in(opening: bytes, kind: str, *, is_whole: bool) -> Cause | None:
    """Why a file cannot be read, if how it begins tells.

    Args:
        opening: Its first bytes, unpacked.
        kind: What its name says it is, as "CSV".
        is_whole: Whether these are all of them.

    Returns:
        The cause; None where nothing is wrong with how it begins.
    """
    for begins, what, remedy in _MAGIC:
        if opening.startswith(begins) and what != kind:
            return Cause(f"it is {what}", remedy)
    if _is_utf16(opening):
        return Cause(f"it is {_UTF16[0]}", _UTF16[1])
    if kind not in ("text", "Parquet") and _PAGE.match(opening):
        return Cause("it is a web page", "Download the file itself: of a page that shows it, the link named raw.")
    look = _LOOKS.get(kind)
    return look(opening.removeprefix(b"\xef\xbb\xbf").lstrip(), is_whole) if look else None


def _is_utf16(opening: bytes) -> bool:
    """Whether it has the mark of UTF-16, or every other byte of it is NUL, as of most languages' text in it."""
    if opening.startswith(_UTF16_BOMS):
        return True
    start = opening[:256]
    return len(start) >= 8 and any(not any(start[side::2]) and all(start[1 - side :: 2]) for side in (0, 1))


def _delimiter_of(wanted: str) -> Callable[[bytes, bool], Cause | None]:
    def look(opening: bytes, _is_whole: bool) -> Cause | None:
        """A header in which something else than what is expected stands between the names."""
        header = opening.partition(b"\n")[0].decode("utf-8", "replace")
        found = [other for other in _DELIMITERS if other in header]
        if not found or wanted in header:
            return None
        ending = {"\t": "Name it .tsv.", ",": "Name it .csv."}.get(found[0], "Write it with commas between them.")
        return Cause(f"its columns are separated by {_DELIMITERS[found[0]]}", ending)

    return look


def _json_lines(opening: bytes, is_whole: bool) -> Cause | None:
    """What no row of JSON Lines can be, in the first of them: a list that others follow is one bad row."""
    first, _, rest = opening.partition(b"\n")
    if first.startswith(b"[") and (_parsed(first) is None or not rest.strip()):
        return Cause("it begins as a JSON list", "Name it .json; in JSON Lines every line is an object.")
    return _json(opening, is_whole)


def _json(opening: bytes, is_whole: bool) -> Cause | None:
    """Objects that are no rows: one with a list for each column, one that holds the rows, or one on many lines."""
    first, _, rest = opening.partition(b"\n")
    if first.strip() == b"{" and _FIRST_KEY.match(opening):
        return _several_lines(opening)
    if not is_whole or rest.strip():
        return None
    value = _parsed(first)
    return _columnar() if isinstance(value, dict) and _is_columnar(value) else None


def _parsed(line: bytes) -> object:
    """What a line of JSON says; None where it is none."""
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value


def _several_lines(opening: bytes) -> Cause:
    match = _FIRST_LIST.match(opening)
    key = match[1].decode("utf-8", "replace") if match else ""
    if match and match[2] == b"{" and key not in _CONVERSATIONS:
        return Cause(f"its rows are a list under {key!r}", "Write the list alone.")
    if match and match[2] != b"{":
        return _columnar()
    return Cause("an object in it takes several lines", _ROWS_AS_LINES)


def _columnar() -> Cause:
    return Cause(
        "it is one object with all values of a column under its name, and not one for each row", _ROWS_AS_LINES
    )


def _is_columnar(value: Mapping[str, object]) -> bool:
    """Whether each key holds a list of values, or one by the numbers of rows as pandas writes it, all equally many."""
    columns: list[list[object]] = []
    for column in value.values():
        if isinstance(column, dict) and list(column) == [str(number) for number in range(len(column))]:
            columns.append(list(column.values()))
        elif isinstance(column, list) and not any(isinstance(part, dict) for part in column):
            columns.append(column)
    lengths = {len(column) for column in columns}
    return len(columns) == len(value) and len(lengths) == 1 and lengths != {0}


_LOOKS: dict[str, Callable[[bytes, bool], Cause | None]] = {
    "JSON Lines": _json_lines,
    "JSON": _json,
    "CSV": _delimiter_of(","),
    "TSV": _delimiter_of("\t"),
}

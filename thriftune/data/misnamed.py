"""Files whose content does not match their name: recognized by their first bytes, each with a remedy."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_UNPACK = "Unpack it."
_EXPORT = "Export it as CSV in UTF-8, or as JSON Lines."
# The first bytes of other file types, the type, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", "Name it with .gz at the end."),
    (b"\x28\xb5\x2f\xfd", "zstd", "Name it with .zst at the end."),
    (b"BZh", "bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "xz", _UNPACK),
    (b"PK\x03\x04", "a zip archive, like .zip, .xlsx and .docx files", f"{_UNPACK} If it is a table: {_EXPORT}"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, like .xls and .doc files", _EXPORT),
    (b"%PDF-", "a PDF", "Extract its text."),
    (b"PAR1", "Parquet", "Name it .parquet."),
    (b"ARROW1", "Arrow", "Write it as .parquet."),
    (b"SQLite format 3", "a SQLite database", _EXPORT),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "Run `git lfs pull`."),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_UTF16 = ("UTF-16", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE.")
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_CONVERSATIONS = ("messages", "conversations", "conversation")
# An object over several lines whose first key holds a list, and the start of that list.
_FIRST_KEY = re.compile(rb'\{\s*"[^"]*"\s*:')
_FIRST_LIST = re.compile(rb'\{\s*"([^"]+)"\s*:\s*\[\s*(.)', re.DOTALL)
_ROWS_AS_LINES = "Write one object per line, or name it .json and write one list of objects."


@dataclass(frozen=True)
class Cause:
    """Why a file does not match its name.

    Attributes:
        what: What is wrong with it, as a clause.
        remedy: What to do.
    """

    what: str
    remedy: str


def cause_in(opening: bytes, kind: str, *, is_whole: bool) -> Cause | None:
    """Why a file cannot be read, if its first bytes tell.

    Args:
        opening: Its first bytes, unpacked.
        kind: The type that its name implies, for example "CSV".
        is_whole: Whether these are all bytes of the file.

    Returns:
        The cause; None if the first bytes are fine.
    """
    for begins, what, remedy in _MAGIC:
        if opening.startswith(begins) and what != kind:
            return Cause(f"it is {what}", remedy)
    if _is_utf16(opening):
        return Cause(f"it is {_UTF16[0]}", _UTF16[1])
    if kind not in ("text", "Parquet") and _PAGE.match(opening):
        return Cause("it is a web page", "Download the file itself, often behind a link named raw on that page.")
    look = _LOOKS.get(kind)
    return look(opening.removeprefix(b"\xef\xbb\xbf").lstrip(), is_whole) if look else None


def _is_utf16(opening: bytes) -> bool:
    """Whether it has UTF-16's byte order mark, or every other byte is NUL, as in most languages' text in UTF-16."""
    if opening.startswith(_UTF16_BOMS):
        return True
    start = opening[:256]
    return len(start) >= 8 and any(not any(start[side::2]) and all(start[1 - side :: 2]) for side in (0, 1))


def _delimiter_of(wanted: str) -> Callable[[bytes, bool], Cause | None]:
    def look(opening: bytes, _is_whole: bool) -> Cause | None:
        """Recognize a header with another delimiter than expected."""
        header = opening.partition(b"\n")[0].decode("utf-8", "replace")
        found = [other for other in _DELIMITERS if other in header]
        if not found or wanted in header:
            return None
        ending = {"\t": "Name it .tsv.", ",": "Name it .csv."}.get(found[0], "Write it with commas between them.")
        return Cause(f"its columns are separated by {_DELIMITERS[found[0]]}", ending)

    return look


def _json_lines(opening: bytes, is_whole: bool) -> Cause | None:
    """Recognize a first line that cannot be JSON Lines; a list with other lines after it is just one bad row."""
    first, _, rest = opening.partition(b"\n")
    if first.startswith(b"[") and (_parsed(first) is None or not rest.strip()):
        return Cause("it starts like a JSON list", "Name it .json; in JSON Lines every line is an object.")
    return _json(opening, is_whole)


def _json(opening: bytes, is_whole: bool) -> Cause | None:
    """Recognize objects that are not rows: with a list for each column, with all rows inside, or over many lines."""
    first, _, rest = opening.partition(b"\n")
    if first.strip() == b"{" and _FIRST_KEY.match(opening):
        return _several_lines(opening)
    if not is_whole or rest.strip():
        return None
    value = _parsed(first)
    return _columnar() if isinstance(value, dict) and _is_columnar(value) else None


def _parsed(line: bytes) -> object:
    """A parsed line of JSON; None if it is not JSON."""
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
        "it is one object with all values of a column under its name, not one object for each row", _ROWS_AS_LINES
    )


def _is_columnar(value: Mapping[str, object]) -> bool:
    """Whether every key holds a list of values, or an object by row number as in pandas, all of the same size."""
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

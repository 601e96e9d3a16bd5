"""Keys of rows that are not read: counted, and listed with what they were probably meant for."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thriftune.data.examples import NOTHING, Row
from thriftune.data.formats import FORMATS, Format
from thriftune.data.message import FLAGS, MESSAGE_KEYS
from thriftune.data.sources import reads_by_column
from thriftune.data.statistics import UnreadKey

if TYPE_CHECKING:
    from thriftune.config.data import DataSource

_KNOWN_KEYS = 200  # counted separately; if keys are values, there can be any number of them
_OTHER_KEYS = "other keys"
_LONGEST_KEY = 60  # characters
_CLOSE = 0.8  # in difflib's measure: inputs is close to input, but prompt_id is not close to prompt
# Other common names of optional columns: a missing required column is reported anyway.
_ALSO_CALLED = {
    "context": "input",
    "query": "input",
    "functions": "tools",
    "system_prompt": "system",
    "system_message": "system",
    "chat_history": "history",
    "reasoning": "reasoning_content",
}


def keys_of(row: Row, row_format: Format) -> set[str]:
    """Keys of a row with a value that its format does not read; those inside columns as column[].key.

    Args:
        row: The row.
        row_format: Its format, over the data's own columns.
    """
    read = row_format.all_columns
    names = {str(name) for name, value in row.items() if name not in read and value not in NOTHING}
    return names.union(row_format.unread(row))


def count(counts: Counter[tuple[int, str]], found: Mapping[tuple[int, str], int]) -> None:
    """Add to the counts, in bounded memory.

    Args:
        counts: Number of rows by source and key; changed in place.
        found: The counts to add.
    """
    for (source, key), rows in found.items():
        name = key.encode("utf-8", "backslashreplace").decode()[:_LONGEST_KEY]
        known = (source, name) in counts or len(counts) < _KNOWN_KEYS
        counts[source, name if known else _OTHER_KEYS] += rows


def explained(
    counts: Mapping[tuple[int, str], int],
    number: int,
    source: "DataSource",
    row_format: Format,
    columns: Sequence[str],
    used: int,
) -> tuple[UnreadKey, ...]:
    """The keys of a source that are not read; those with a hint come first.

    Args:
        counts: Number of rows by source and key.
        number: Index of the source.
        source: The source.
        row_format: Format of its rows.
        columns: Its columns.
        used: Number of its used rows.
    """
    rows_of = {key: rows for (of_source, key), rows in counts.items() if of_source == number}
    if reads_by_column(source.source):  # the others are not even opened
        rows_of |= {column: used for column in columns if column not in row_format.all_columns}
    keys = [UnreadKey(key, rows, _hint(key, source, row_format, columns)) for key, rows in rows_of.items()]
    return tuple(sorted(keys, key=lambda key: (not key.hint, -key.rows, key.name)))


def _hint(key: str, source: "DataSource", row_format: Format, columns: Sequence[str]) -> str:
    """What a key was probably meant for; empty if unknown."""
    _column, is_nested, name = key.partition("[].")
    if " of " in name:
        return "it is only read in the assistant's messages"
    if name in FLAGS:
        return "only true, false, 1 and 0 are read"
    if is_nested:
        meant = _closest(name, MESSAGE_KEYS)
        return f"did you mean {meant!r}?" if meant and name not in MESSAGE_KEYS else ""
    if meant := _closest(key, [column for column in row_format.all_columns if column not in columns]):
        return f"did you mean {meant!r}?"
    readers = [name for name, other in FORMATS.items() if key in other.optional]
    is_template = source.format == "template"  # the person who wrote it chose among the columns
    return f"{', '.join(readers)} read it, but {source.format} does not" if readers and not is_template else ""


def _closest(name: str, wanted: Sequence[str]) -> str:
    """The read column that a name is close to: in another case, by another name, or misspelt."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = _ALSO_CALLED.get(plain, plain)
    return next(iter(difflib.get_close_matches(plain, wanted, n=1, cutoff=_CLOSE)), "")

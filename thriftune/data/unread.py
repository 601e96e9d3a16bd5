"""Keys of rows that are not read: counted, and named with what they were meant for where that can be told."""

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

_KNOWN_KEYS = 200  # counted apart; where keys are values, there can be endlessly many
_OTHER_KEYS = "other keys"
_LONGEST_KEY = 60  # characters
_CLOSE = 0.8  # as difflib measures it: inputs is close to input, and prompt_id is not to prompt
# What others call columns that rows may lack: one that they must have is missed anyway.
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
    """Keys of a row that say something, and that its format does not read; those inside of columns as column[].key.

    Args:
        row: The row.
        row_format: What it means, over the data's own columns.
    """
    read = row_format.all_columns
    names = {str(name) for name, value in row.items() if name not in read and value not in NOTHING}
    return names.union(row_format.unread(row))


def count(counts: Counter[tuple[int, str]], found: Mapping[tuple[int, str], int]) -> None:
    """Add to what was counted, in bounded memory.

    Args:
        counts: Rows by source and key.
        found: More of them.
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
    """What is not read of a source, those keys first that seem to be meant for something.

    Args:
        counts: Rows by source and key.
        number: Index of the source.
        source: The source.
        row_format: What its rows mean.
        columns: What it has.
        used: How many of its rows are used.
    """
    rows_of = {key: rows for (of_source, key), rows in counts.items() if of_source == number}
    if reads_by_column(source.source):  # the others are not even opened
        rows_of |= {column: used for column in columns if column not in row_format.all_columns}
    keys = [UnreadKey(key, rows, _hint(key, source, row_format, columns)) for key, rows in rows_of.items()]
    return tuple(sorted(keys, key=lambda key: (not key.hint, -key.rows, key.name)))


def _hint(key: str, source: "DataSource", row_format: Format, columns: Sequence[str]) -> str:
    """What a key was meant for; empty where it seems to be meant for nothing here."""
    _column, is_nested, name = key.partition("[].")
    if " of " in name:
        return "it is read of the assistant's messages only"
    if name in FLAGS:
        return "only true, false, 1 and 0 are read"
    if is_nested:
        meant = _closest(name, MESSAGE_KEYS)
        return f"did you mean {meant!r}?" if meant and name not in MESSAGE_KEYS else ""
    if meant := _closest(key, [column for column in row_format.all_columns if column not in columns]):
        return f"did you mean {meant!r}?"
    readers = [name for name, other in FORMATS.items() if key in other.optional]
    is_template = source.format == "template"  # whoever writes one chooses among the columns
    return f"{', '.join(readers)} read it, and {source.format} does not" if readers and not is_template else ""


def _closest(name: str, wanted: Sequence[str]) -> str:
    """What is read that a name is close to: in other case, by another name, or misspelt."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = _ALSO_CALLED.get(plain, plain)
    return next(iter(difflib.get_close_matches(plain, wanted, n=1, cutoff=_CLOSE)), "")

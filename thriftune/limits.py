"""Limits on one row, one file and one chat template. A row over a limit is set aside like any other bad row.

Every limit is far above what training rows need, and low enough that four processes that reach it over and over stay
within the 12 GiB of the task that prepares data (benchmarks/hostile_input.py measures it).
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

# Bytes of a row as it stands in its file, unpacked; characters where a file is read as text. A long novel is 3 MB, a
# million tokens of English are 4 MB. Tokenizing takes 150 times the size of an English text as memory, and 350 times
# where a token is one or two letters.
ROW_BYTES = 4 << 20
# Levels of nested lists and objects, in a row or in JSON that a row holds as text. Schemas of tools have about 10.
# Python follows nesting on its own stack, which ends below 1,000 levels.
DEPTH = 64
# Messages, turns of a history, or corrections in a row: finding each answer takes time in proportion to all tokens, and
# each correction repeats its sentence.
TURNS = 10_000
# Characters of all texts that a format or a chat template makes from a row: what the row holds, plus a little more.
TEXT_CHARACTERS = ROW_BYTES + (1 << 20)
# The unpacked content may be this many times as large as the file. Text packs 3 to 10 times, rows of logs up to 100.
EXPANSION = 200
# Bytes that any file may unpack to, whatever its own size: read in a second, and never kept.
EXPANSION_FREE_BYTES = 256 << 20
# Bytes of rows to read from a Parquet file at once: as many rows as fit, by the average of their row group.
READ_BYTES = 32 << 20
# Bytes of rows that the preflight looks at: a thousand rows, or fewer if they are long.
SAMPLE_BYTES = 64 << 20
# Column names to collect, where every row has columns of its own.
COLUMNS = 10_000
# Characters of a reason in rejected.parquet, in reports and in the log: some reasons quote the row.
REASON_CHARACTERS = 300

# Loop turns, calls and outputs of a chat template over all renderings of a row, two for each answer: 6 million for a
# conversation of 1,000 messages of 1,000 characters (SmolLM2's template, and Qwen3's). Steps are counted instead of
# time, so that the same rows are set aside on every machine; a step takes 0.3 to 4 microseconds.
RENDER_STEPS = 10_000_000
# CPU seconds for the same renderings: for templates whose steps are few and long.
RENDER_SECONDS = 60
# Characters of all intermediate texts of one rendering, which it may keep until its end: for a row of 4 MiB, each of
# its texts a dozen times. At four bytes a character they take 1.3 GB.
RENDER_CHARACTERS = 64 * TEXT_CHARACTERS
# The simplest conversation may take a tenth of these steps and seconds: a template that needs more for it needs too
# much for any other.
SIMPLEST_PART = 10
# Characters of a chat template itself. The longest published ones have 30,000.
TEMPLATE_CHARACTERS = 1 << 18
# A process gives up on the template after this many rows over the rendering limits, if they are more than half of all.
OVERRUNS = 3

TOO_DEEP = f"nested more than {DEPTH} levels deep"


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than `DEPTH`; checked level by level, without recursion.

    Args:
        value: A value of JSON or of a table.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list | tuple)]
        if not level:
            return False
    return True


def size_of(value: Any, most: int = sys.maxsize) -> int:
    """Approximate size of a value: the characters of its texts, and some for everything else in it.

    Args:
        value: A value of JSON, a table or a template.
        most: Where to stop counting: for anything larger, the result is a little more than this.
    """
    size, pending = 0, [value]
    while pending and size <= most:
        one = pending.pop()
        kind = type(one)
        if kind is str:
            size += len(one)
        elif kind is int:
            size += 4 + one.bit_length() // 3
        elif kind is list or kind is tuple:
            size += 16
            pending += one
        elif kind is dict:
            size += 16
            pending += one
            pending += one.values()
        else:
            size += len(one) if isinstance(one, str | bytes) else 4
            pending += _parts(one)
    return size


def too_large(size: int | None = None) -> str:
    """Why a row over `ROW_BYTES` is set aside.

    Args:
        size: Its size in bytes, where known.
    """
    found = f" ({size / 2**20:,.0f} MiB)" if size is not None else ""
    return f"is larger than {ROW_BYTES >> 20} MiB{found}"


def shortened(text: str) -> str:
    """A reason cut to `REASON_CHARACTERS`.

    Args:
        text: The reason, which may quote the row.
    """
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}..."


def _parts(value: Any) -> list[Any]:
    """The values in a list or an object; nothing for anything else."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return [] if isinstance(value, str | bytes | range) or not isinstance(value, Collection) else list(value)

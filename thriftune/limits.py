"""What one row, one file and one chat template may ask for. A row over a limit is set aside like any other bad row.

Every limit is far above what rows to train on need, and low enough that four processes that meet it over and over stay
within the 12 GiB of the task that prepares data (benchmarks/hostile_input.py measures it).
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

# Bytes of a row as it stands in its file, unpacked; characters where a file is read as text. A long novel is 3 MB, a
# million tokens of English are 4 MB. Tokenizing takes 150 times as much memory as it is given English, and 350 times
# where a token is a letter or two.
ROW_BYTES = 4 << 20
# Levels of lists and objects in each other, in a row or in JSON that a row holds as text. Schemas of tools have about
# 10. Python follows nesting with its own stack, which ends somewhere below 1,000.
DEPTH = 64
# Messages, turns of a history, or corrections in a row: finding each answer in the tokens takes as long as there are
# tokens, and each correction repeats its sentence.
TURNS = 10_000
# Characters of all texts that are made of a row, by a format or by a chat template: what the row holds, and a little
# around it.
TEXT_CHARACTERS = ROW_BYTES + (1 << 20)
# How many times as large as the file its unpacked content may be. Text packs 3 to 10 times, rows of logs up to 100.
EXPANSION = 200
# Bytes that any file may unpack to, whatever it was packed from: read in a second, and never kept.
EXPANSION_FREE_BYTES = 256 << 20
# Bytes of rows that are read from a Parquet file at once: as many rows as fit, by the average of their row group.
READ_BYTES = 32 << 20
# Bytes of rows that the preflight looks at: a thousand rows, or fewer that are long.
SAMPLE_BYTES = 64 << 20
# Names of columns that are collected of rows that each have columns of their own.
COLUMNS = 10_000
# Characters of a reason in rejected.parquet, in reports and in the log: some quote what is in the row.
REASON_CHARACTERS = 300

# Turns of loops, calls and outputs of a chat template over all renderings of a row, which are two for each answer: 6
# million for a conversation of 1,000 messages of 1,000 characters (SmolLM2's template, and Qwen3's). Counted in place
# of time, so that the same rows are set aside on every machine; a step takes 0.3 to 4 microseconds.
RENDER_STEPS = 10_000_000
# Seconds of CPU for the same: for steps that are few and long.
RENDER_SECONDS = 60
# Characters of all texts that one rendering makes on the way, which it may keep until its end: of a row of 4 MiB, each
# of its texts a dozen times. At four bytes a character they take 1.3 GB.
RENDER_CHARACTERS = 64 * TEXT_CHARACTERS
# Of steps and seconds, the part that the simplest conversation may take: a template that needs more needs too much for
# any.
SIMPLEST_PART = 10
# Characters of a chat template itself. The longest that are published have 30,000.
TEMPLATE_CHARACTERS = 1 << 18
# Rows over the limits of rendering after which a process gives up on the template, if they are more than half of all.
OVERRUNS = 3

TOO_DEEP = f"nested more than {DEPTH} levels deep"


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects lie in each other deeper than `DEPTH`; looked at level by level, so never recursively.

    Args:
        value: What JSON, or a table, can hold.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list | tuple)]
        if not level:
            return False
    return True


def size_of(value: Any, most: int = sys.maxsize) -> int:
    """About how much a value holds: the characters of its texts, and some for everything else in it.

    Args:
        value: What JSON, a table or a template can hold.
        most: Where to end: what holds more is said to hold a little more than this.
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
        size: How large it is, where that is known.
    """
    found = f" ({size / 2**20:,.0f} MiB)" if size is not None else ""
    return f"is larger than {ROW_BYTES >> 20} MiB{found}"


def shortened(text: str) -> str:
    """A reason that is itself no giant.

    Args:
        text: It, which may quote what is in a row.
    """
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}..."


def _parts(value: Any) -> list[Any]:
    """What a list or an object holds; nothing for anything else."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return [] if isinstance(value, str | bytes | range) or not isinstance(value, Collection) else list(value)

"""Identical examples, found by sorting their digests on disk, one part at a time."""

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Digests sorted at once: 24 bytes each, so 12 MiB, whatever the number of examples.
_SORTED_AT_ONCE = 1 << 19
_SCANNED_AT_ONCE = 1 << 18


class Copy(IntEnum):
    """What to do with a piece of an example."""

    KEEP = 0
    DUPLICATE = 1
    LEAKED = 2


def find_copies(digests: Path, held_out: Path, destination: Path, *, deduplicate: bool, leakage_check: bool) -> None:
    """Decide for each piece of an example whether it is a copy of another.

    Args:
        digests: File with 16 bytes for each piece.
        held_out: File with a byte for each piece: 1 if it is held out from training, else 0.
        destination: File to write, with a `Copy` as a byte for each piece.
        deduplicate: Of equal pieces, keep one (the first, or with `leakage_check` the first held-out one if any) and
            mark the others as duplicates.
        leakage_check: Mark training pieces that are also held out as leaked, whether or not they are duplicates.
    """
    import numpy as np

    count = digests.stat().st_size // 16
    destination.write_bytes(b"\0" * count)
    if count == 0 or not (deduplicate or leakage_check):
        return
    keys = np.memmap(digests, dtype=np.uint64, mode="r", shape=(count, 2))
    sides = np.memmap(held_out, dtype=np.uint8, mode="r", shape=(count,))
    marks = np.memmap(destination, dtype=np.uint8, mode="r+", shape=(count,))
    parts = -(-count // _SORTED_AT_ONCE)
    for part in range(parts):
        rows = _rows_of_part(keys, part, parts)
        # Of copies on both sides a held-out one stays: as a duplicate of a leaked one, it would be lost as well.
        yields = leakage_check & (sides[rows] == 0)
        rows = rows[np.lexsort((rows, yields, keys[rows, 1], keys[rows, 0]))]
        opens_group = np.ones(len(rows), dtype=bool)
        opens_group[1:] = (keys[rows[1:]] != keys[rows[:-1]]).any(axis=1)
        if deduplicate:
            marks[rows[~opens_group]] = Copy.DUPLICATE
        if leakage_check:
            group = np.cumsum(opens_group) - 1
            is_held_out = np.bincount(group, weights=sides[rows]) > 0
            marks[rows[is_held_out[group] & (sides[rows] == 0)]] = Copy.LEAKED
    marks.flush()


def _rows_of_part(keys: "npt.NDArray[np.uint64]", part: int, parts: int) -> "npt.NDArray[np.int64]":
    """The rows whose digests fall into a part; equal digests fall into the same part."""
    import numpy as np

    found = []
    for start in range(0, len(keys), _SCANNED_AT_ONCE):
        chunk = keys[start : start + _SCANNED_AT_ONCE, 0] % np.uint64(parts)
        found.append(np.flatnonzero(chunk == np.uint64(part)) + start)
    return np.concatenate(found)

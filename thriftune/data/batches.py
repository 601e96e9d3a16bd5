"""The used rows, in order and in batches of bounded size, for conversion."""

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from thriftune.data.conversion import Batch
from thriftune.data.examples import RawRow
from thriftune.data.selection import Selection
from thriftune.data.sources import NumberedRow, OpenSource
from thriftune.limits import size_of

if TYPE_CHECKING:
    from thriftune.data.held_out import Flags

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 1 << 21  # so that many batches of long documents fit in memory
_FLAGS_AT_ONCE = 1 << 16


def batches(opened: Sequence[OpenSource], selections: Sequence[Selection], held_out: "Flags") -> Iterator[Batch]:
    """The used rows of all sources, in order, in batches of bounded size.

    Args:
        opened: The sources.
        selections: Which rows of each are used.
        held_out: For each used row of all sources, in order, whether it is held out. Shape [used rows].

    Yields:
        The batches, each with rows of one source.
    """
    sides = (flag for start in range(0, len(held_out), _FLAGS_AT_ONCE) for flag in _flags(held_out, start))
    for number, (source, selection) in enumerate(zip(opened, selections, strict=True)):
        batch, characters = Batch(number, [], []), 0
        for row in used_rows(source, selection):
            size = _characters(row.raw)
            if len(batch.rows) == _BATCH_ROWS or (batch.rows and characters + size > _BATCH_CHARACTERS):
                yield batch
                batch, characters = Batch(number, [], []), 0
            batch.rows.append(row)
            batch.held_out.append(next(sides))
            characters += size
        if batch.rows:
            yield batch


def used_rows(source: OpenSource, selection: Selection) -> Iterator[NumberedRow]:
    """The rows of a source that are used, in order."""
    return compress(source.read(), _uses(selection))


def _uses(selection: Selection) -> Iterator[bool]:
    for start in range(0, selection.count, _FLAGS_AT_ONCE):
        yield from selection.uses(start, min(_FLAGS_AT_ONCE, selection.count - start)).tolist()


def _flags(held_out: "Flags", start: int) -> list[bool]:
    return [bool(flag) for flag in held_out[start : start + _FLAGS_AT_ONCE].tolist()]


def _characters(raw: RawRow) -> int:
    """Approximate length of a row, in characters."""
    if isinstance(raw, dict):
        return size_of(raw)
    return len(raw) if isinstance(raw, bytes) else 0

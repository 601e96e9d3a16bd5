"""Which of the used rows are held out: a share of the distinct rows, with every copy of them.

All copies of a text are on the same side, so copies do not change the share. Rows are read once more for this, before
any is tokenized; their content is compared by digests on disk, never in memory.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data.batches import used_rows
from thriftune.data.duplicates import Copy, find_copies
from thriftune.data.examples import Conversation, Example, MarkedText, RowError
from thriftune.data.formats import Format
from thriftune.data.readers import decode
from thriftune.data.selection import Selection, held_out_shares, nth_lowest, too_few
from thriftune.data.sources import NumberedRow, OpenSource
from thriftune.progress import progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from thriftune.data.selection import Ranks

    Flags = npt.NDArray[np.uint8]


def hold_out(
    opened: Sequence[OpenSource],
    selections: Sequence[Selection],
    row_formats: Sequence[Format],
    *,
    share: float,
    of_task: int,
    folder: Path,
) -> "Flags":
    """Decide which of the used rows are held out.

    Args:
        opened: The sources.
        selections: Which rows of each are used.
        row_formats: Format of each source.
        share: Share of the distinct rows to hold out, the same for each source; at least one in total, never all.
        of_task: Number of sources that rows are held out of, the first ones; the others are only trained on.
        folder: A scratch folder.

    Returns:
        A byte for each used row of all sources, in order: 0 for training. Shape [used rows]; it is in the folder, not
        in memory.

    Raises:
        DataError: All rows are identical, so there is nothing to hold out.
    """
    import numpy as np

    digests, sides, copies, followers = (folder / f"rows-{name}.bin" for name in ("said", "sides", "copies", "follow"))
    _write_digests(digests, opened, selections, row_formats)
    count = sum(selection.used for selection in selections)
    sides.write_bytes(b"\0" * count)
    find_copies(digests, sides, copies, deduplicate=True, leakage_check=False)
    ends = np.cumsum([selection.used for selection in selections])
    marks = np.split(np.memmap(copies, dtype=np.uint8, mode="r"), ends[:-1])
    unique = [len(of_source) - int(np.count_nonzero(of_source)) for of_source in marks[:of_task]]
    if sum(unique) < 2:
        raise too_few(f"{count} identical rows")
    held_out = np.memmap(sides, dtype=np.uint8, mode="r+")
    sides_of_task = np.split(held_out, ends[:-1])[:of_task]
    each = zip(sides_of_task, selections, marks, held_out_shares(unique, share), strict=False)
    for side, selection, of_source, number in each:
        _mark(side, selection, of_source, number)
    held_out.flush()
    find_copies(digests, sides, followers, deduplicate=False, leakage_check=True)
    last = int(ends[of_task - 1])  # a replayed copy stays where it trains: the leakage check leaves it out by name
    np.bitwise_or(held_out[:last], np.memmap(followers, dtype=np.uint8, mode="r")[:last], out=held_out[:last])
    return held_out


def _mark(side: "Flags", selection: Selection, copies: "Flags", number: int) -> None:
    """Hold out the `number` rows of a source with the lowest ranks, counting only the first of identical rows."""
    last = nth_lowest(lambda: (ranks[is_first] for _, ranks, is_first in _lots(selection, copies)), number)
    for start, ranks, is_first in _lots(selection, copies) if number else ():
        side[start : start + len(ranks)] = is_first & (ranks <= last)


def _lots(selection: Selection, copies: "Flags") -> Iterator[tuple[int, "Ranks", "npt.NDArray[np.bool_]"]]:
    """Batches of used rows: the start of each, their ranks, and which rows are the first of identical ones."""
    start = 0
    for ranks in selection.ranks():
        yield start, ranks, copies[start : start + len(ranks)] == Copy.KEEP
        start += len(ranks)


def _write_digests(
    file: Path, opened: Sequence[OpenSource], selections: Sequence[Selection], row_formats: Sequence[Format]
) -> None:
    total = sum(selection.used for selection in selections)
    with file.open("wb") as stream, progress(total, "Comparing") as bar:
        for source, selection, row_format in zip(opened, selections, row_formats, strict=True):
            for row in used_rows(source, selection):
                stream.write(_digest(row, row_format))
                bar.update()


def _digest(row: NumberedRow, row_format: Format) -> bytes:
    """16 bytes that are equal for rows with the same texts, whatever other keys they have and whichever parts train.

    A row that cannot be read equals no other.
    """
    try:
        said = [_said(example) for example in row_format.read(decode(row.raw))]
    except RowError:
        said = [f"{row.place}\0{row.number}"]
    return hashlib.blake2b("\0".join(said).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _said(example: Example | RowError) -> str:
    if isinstance(example, MarkedText):
        return example.text
    if isinstance(example, Conversation):
        return repr((list(map(_without_marks, example.messages)), example.tools))
    return str(example)


def _without_marks(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without its weight, the ids of calls (they differ between copies) and surrounding white space."""
    said = {key: part for key, part in message.items() if key not in ("weight", "tool_call_id")}
    said["content"] = said["content"].strip()
    return {**said, "tool_calls": [call["function"] for call in message.get("tool_calls", ())]}

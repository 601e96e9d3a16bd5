"""From pieces of examples to training rows: unchanged, joined and cut (documents), or packed.

Works on flat arrays, a window of examples at a time, so that memory does not grow with the data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from thriftune.data.packing import pack
from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Ints = npt.NDArray[np.integer]

# Examples packed together. More would fill rows a little better, but with 16384 packing wastes well below 1 %.
_WINDOW_EXAMPLES = 1 << 14
_WINDOW_TOKENS = 1 << 22


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, concatenated in flat arrays.

    Attributes:
        input_ids: Shape [tokens].
        labels: Shape [tokens]; `IGNORED` where a token carries no loss.
        ends: Shape [rows + 1]; row i is tokens ends[i] to ends[i + 1].
        position_ids: Shape [tokens], starting at 0 in each example of a packed row; None if the rows are not packed.
    """

    input_ids: "Ints"
    labels: "Ints"
    ends: "Ints"
    position_ids: "Ints | None" = None

    @property
    def lengths(self) -> "Ints":
        """Tokens of each row; shape [rows]."""
        import numpy as np

        return np.diff(self.ends)

    def taken(self, indices: "Ints") -> "Rows":
        """Some of the rows, in the order given."""
        import numpy as np

        lengths = self.lengths[indices]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.ends[indices] - ends[:-1], lengths) + np.arange(ends[-1])
        return Rows(self.input_ids[tokens], self.labels[tokens], ends)


def rows_of(batch: "pa.RecordBatch") -> Rows:
    """The rows in the columns input_ids and labels of a record batch, without a copy."""
    ids, labels = batch.column("input_ids"), batch.column("labels")
    ends = ids.offsets.to_numpy()
    start, end = int(ends[0]), int(ends[-1])
    return Rows(ids.values.to_numpy()[start:end], labels.values.to_numpy()[start:end], ends - start)


def joined(parts: list[Rows]) -> Rows:
    """Concatenate several batches of rows."""
    import numpy as np

    starts = np.cumsum([0, *(len(part.input_ids) for part in parts)])
    ends = [part.ends[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Rows(
        np.concatenate([np.empty(0, np.int32), *(part.input_ids for part in parts)]),
        np.concatenate([np.empty(0, np.int32), *(part.labels for part in parts)]),
        np.concatenate([np.zeros(1, np.int64), *ends]),
    )


def packed(rows: Rows, capacity: int, seed: Sequence[int]) -> Rows:
    """Pack examples into rows of at most `capacity` tokens, with positions that restart in each example.

    Args:
        rows: Examples of at most `capacity` tokens, each with `IGNORED` as its first label: else the last token of one
            example would be trained to predict the first token of the next.
        capacity: Longest row, in tokens.
        seed: Numbers that decide which examples of the same length share a row with which others.

    Returns:
        The packed rows.
    """
    import numpy as np

    bins = pack(rows.lengths, capacity, seed)
    order = np.array([item for items in bins for item in items], dtype=np.int64)
    taken = rows.taken(order)
    positions = np.arange(len(taken.input_ids)) - np.repeat(taken.ends[:-1], taken.lengths)
    ends = taken.ends[np.concatenate([[0], np.cumsum([len(items) for items in bins], dtype=np.int64)])]
    return Rows(taken.input_ids, taken.labels, ends, positions.astype(np.int32))


class Packer:
    """Packs examples window by window."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        """Start without examples.

        Args:
            capacity: Longest row, in tokens.
            seed: Seed of the run. The number of rows and their lengths do not depend on it.
        """
        self._capacity, self._seed, self._window = capacity, seed, 0
        self._waiting: list[Rows] = []
        self._examples = self._tokens = 0

    def add(self, rows: Rows) -> Iterator[Rows]:
        """Add examples, and return packed rows whenever a window is full."""
        self._waiting.append(rows)
        self._examples += len(rows.ends) - 1
        self._tokens += len(rows.input_ids)
        if self._examples >= _WINDOW_EXAMPLES or self._tokens >= _WINDOW_TOKENS:
            yield from self.finish()

    def finish(self) -> Iterator[Rows]:
        """Pack the remaining examples."""
        if self._examples:
            yield packed(joined(self._waiting), self._capacity, (self._seed, self._window))
            self._window += 1
        self._waiting, self._examples, self._tokens = [], 0, 0


class Joiner:
    """Joins documents and cuts them into blocks; nothing is dropped.

    Each block starts with the last token of the block before: the first token of a block cannot be predicted from
    anything, so without the overlap one prediction per block would be lost.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._rest = joined([])

    def add(self, rows: Rows) -> Iterator[Rows]:
        """Add documents, and return the full blocks."""
        import numpy as np

        ids = np.concatenate([self._rest.input_ids, rows.input_ids])
        labels = np.concatenate([self._rest.labels, rows.labels])
        step = self._length - 1
        blocks = max(0, (len(ids) - 1) // step)
        if blocks:
            tokens = (np.arange(blocks)[:, None] * step + np.arange(self._length)).ravel()
            block_labels = labels[tokens]
            block_labels[:: self._length] = IGNORED
            yield Rows(ids[tokens], block_labels, np.arange(blocks + 1) * self._length)
        left = slice(blocks * step, None)
        self._rest = Rows(ids[left], labels[left], np.array([0, len(ids) - blocks * step]))

    def finish(self) -> Iterator[Rows]:
        """Return the rest as a shorter block; a single remaining token was already in the block before."""
        if len(self._rest.input_ids) > 1:
            labels = self._rest.labels.copy()
            labels[0] = IGNORED
            yield Rows(self._rest.input_ids, labels, self._rest.ends)
        self._rest = joined([])


class RowWriter:
    """Writes rows to a Parquet file one batch at a time."""

    def __init__(self, file: Path, *, has_positions: bool) -> None:
        """Open the file.

        Args:
            file: File to write, with the columns input_ids and labels (lists of int32), length, and position_ids.
            has_positions: Whether the rows are packed.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._lists = ["input_ids", "labels", *(["position_ids"] if has_positions else [])]
        self._schema = pa.schema([*((name, pa.list_(pa.int32())) for name in self._lists), ("length", pa.int32())])
        # Positions count up: stored as differences they take almost no space.
        counting = {"position_ids.list.element": "DELTA_BINARY_PACKED"} if has_positions else None
        dictionary = ["input_ids.list.element", "labels.list.element"]
        self._writer = pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=dictionary, column_encoding=counting
        )

    def write(self, rows: Rows) -> None:
        """Write a row group."""
        import numpy as np
        import pyarrow as pa

        ends = pa.array(rows.ends.astype(np.int32))
        values = {"input_ids": rows.input_ids, "labels": rows.labels, "position_ids": rows.position_ids}
        columns = [pa.ListArray.from_arrays(ends, pa.array(values[name], pa.int32())) for name in self._lists]
        lengths = pa.array(rows.lengths.astype(np.int32))
        self._writer.write_batch(pa.RecordBatch.from_arrays([*columns, lengths], schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

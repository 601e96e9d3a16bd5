"""The order of rows: an optimizer step trains on the same rows with any number of ranks and any micro batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.data.prepared import POSITIONS, is_packed
from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Generator


@dataclass(frozen=True)
class ByLength:
    """Grouping of rows by length.

    Attributes:
        lengths: Number of tokens of each row.
        global_batch: Rows per optimizer step.
    """

    lengths: Sequence[int]
    global_batch: int


class RowOrder:
    """An order of rows that depends on seed, epoch and global batch alone, filled up to whole micro batches.

    transformers' own grouping by length uses the random numbers of the process: a training that resumes in a later
    epoch, or on another number of GPUs, would train on some rows twice and on some never (transformers 5.23). And
    accelerate fills the last micro batches of an epoch with rows from its start, as many as the number of ranks needs:
    with another number, the last step of an epoch would train on other rows. Here they are filled with the index after
    the last row, which is that of `filler`.

    Args:
        rows: Number of rows.
        at_once: Rows that all ranks take together: ranks x micro batch.
        seed: Seed of the run.
        by_length: How to group rows by length; None for a random order.
    """

    def __init__(self, rows: int, at_once: int, seed: int, by_length: ByLength | None = None) -> None:
        self._rows, self._filled, self._seed, self._by_length = rows, -rows % at_once, seed, by_length
        self._epoch = 0

    def __len__(self) -> int:
        return self._rows + self._filled

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the order."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        from torch import Generator

        yield from self._order(Generator().manual_seed(self._seed + self._epoch))
        yield from [self._rows] * self._filled

    def _order(self, generator: "Generator") -> list[int]:
        if self._by_length is None:
            from torch import randperm

            return list(map(int, randperm(self._rows, generator=generator)))
        from transformers import trainer_pt_utils

        grouped: Any = trainer_pt_utils.get_length_grouped_indices
        return list(grouped(list(self._by_length.lengths), self._by_length.global_batch, generator=generator))


def filler(rows: "Dataset", pad: int) -> dict[str, Any]:
    """A row that has no effect on a training: one token, and no label.

    The loss of a step is divided by the number of labels on all ranks, so this row changes neither.

    Args:
        rows: Dataset whose columns the row has.
        pad: Id of a token that is not counted.
    """
    row: dict[str, Any] = {"input_ids": [pad], "labels": [IGNORED], "length": 1}
    return {**row, POSITIONS: [0]} if is_packed(rows) else row

"""Which rows an optimizer step trains on: the same ones on any number of ranks and with any micro batch."""

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
    """Rows of like length together.

    Attributes:
        lengths: Tokens of each row.
        global_batch: Rows per optimizer step.
    """

    lengths: Sequence[int]
    global_batch: int


class RowOrder:
    """An order of rows that depends on seed, epoch and global batch alone, filled up to whole micro batches.

    transformers' own grouping by length draws from the random numbers of the process: a training that goes on in a
    later epoch, or on another number of GPUs, would take other rows than it would have, some twice and some never
    (transformers 5.23). And accelerate fills the last micro batches of an epoch with as many rows of its beginning as
    the number of ranks asks for: the last step of an epoch would train on other rows with other ranks. Here the index
    after the last row, that of `filler`, fills them up.

    Args:
        rows: How many there are.
        at_once: Rows that all ranks take at a time: ranks x micro batch.
        seed: Of the run.
        by_length: Group rows by length; None: a random order.
    """

    def __init__(self, rows: int, at_once: int, seed: int, by_length: ByLength | None = None) -> None:
        self._rows, self._filled, self._seed, self._by_length = rows, -rows % at_once, seed, by_length
        self._epoch = 0

    def __len__(self) -> int:
        return self._rows + self._filled

    def set_epoch(self, epoch: int) -> None:
        """Another pass has another order."""
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
    """A row to be trained on without any effect: one token, and no label.

    The loss of a step is divided by the labels of all its rows on all ranks, so that this row changes neither.

    Args:
        rows: Rows whose columns it has.
        pad: A token that is not counted.
    """
    row: dict[str, Any] = {"input_ids": [pad], "labels": [IGNORED], "length": 1}
    return {**row, POSITIONS: [0]} if is_packed(rows) else row

"""Measure the loss on the held-out rows of a prepared dataset, in the same way during and after training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.data.tokenization import IGNORED
from thriftune.distributed import Rank
from thriftune.training.collation import PaddingCollator

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_ALONE = Rank(index=0, local_index=0, world_size=1)


@dataclass(frozen=True)
class EvalReport:
    """The measurements of one model.

    Attributes:
        loss: Mean negative log-likelihood per trained token of the held-out rows, in nats.
        perplexity: exp(loss).
        tokens: Number of tokens in the mean.
        prompts: The prompts.
        answers: The model's answer to each prompt.
    """

    loss: float
    perplexity: float
    tokens: int
    prompts: list[str]
    answers: list[str]


@dataclass(frozen=True)
class RowLosses:
    """The loss of each of several rows.

    Attributes:
        sums: Summed negative log-likelihood of the trained tokens of each row, in nats.
        tokens: Number of trained tokens of each row.
    """

    sums: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of trained tokens of all rows."""
        return sum(self.tokens)

    @property
    def mean(self) -> float:
        """Loss per trained token: summed over all rows and divided once, so that no row weighs more than its tokens."""
        return sum(self.sums) / self.count

    def first(self, rows: int) -> "RowLosses":
        """The losses of the first rows.

        Args:
            rows: Number of rows.
        """
        return RowLosses(self.sums[:rows], self.tokens[:rows])


def held_out_rows(dataset_dir: Path, at_most: int) -> "Dataset":
    """Load the held-out rows of a prepared dataset, in a random order that is always the same.

    Args:
        dataset_dir: A prepared dataset.
        at_most: Largest number of rows.

    Returns:
        The rows. A smaller number gives the first rows of a larger one.
    """
    rows = load_split(dataset_dir, VALIDATION).shuffle(seed=0, keep_in_memory=True)  # sources are often sorted
    return rows.select(range(min(at_most, len(rows))))


def row_losses(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    batch: int,
    rank: Rank = _ALONE,
    on_batch: Callable[[], None] = lambda: None,
) -> RowLosses:
    """Measure the loss of each row, with rows of similar length in a batch.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: This process among those that share the rows; all of them run the model equally often.
        on_batch: Called after each batch of this process.

    Returns:
        The losses of all rows in their order, on every rank.
    """
    collate = PaddingCollator(tokenizer)
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    batches = [by_length[start : start + batch] for start in range(0, len(rows), batch)]
    found: dict[int, tuple[float, int]] = {}
    for first in range(0, len(batches), rank.world_size):
        mine = first + rank.index
        part = batches[min(mine, len(batches) - 1)]
        inputs = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in part]).items()}
        sums, counts = _losses(model, inputs)
        if mine < len(batches):  # else another rank has measured it
            found.update(zip(part, zip(sums.tolist(), counts.tolist(), strict=True), strict=True))
        on_batch()
    if rank.world_size > 1:
        found = {row: loss for part in distributed.gather_objects(found) for row, loss in part.items()}
    ordered = [found[row] for row in range(len(rows))]
    return RowLosses(tuple(total for total, _ in ordered), tuple(count for _, count in ordered))


def _losses(model: Any, inputs: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
    """Summed loss and number of trained tokens of each row of a batch.

    Args:
        model: A causal language model.
        inputs: Tensors of shape [rows, tokens], including the labels.

    Returns:
        Two tensors of shape [rows].
    """
    import torch

    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
    return losses.view(labels.shape).double().sum(1), (labels != IGNORED).sum(1)


def held_out_loss(
    model: Any, tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", batch: int, rank: Rank = _ALONE
) -> tuple[float, int]:
    """Measure the mean loss per trained token.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: This process among those that share the rows.

    Returns:
        Mean loss in nats over all ranks, and the number of tokens in the mean.
    """
    losses = row_losses(model, tokenizer, rows, batch, rank)
    return losses.mean, losses.count


class HeldOut:
    """Held-out rows, to measure the loss of a whole model in one process.

    Args:
        rows: Rows with input_ids and labels.
        tokenizer: The model's tokenizer, for padding.
        batch: Rows per forward pass.
    """

    def __init__(self, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", batch: int) -> None:
        self._rows, self._tokenizer, self._batch = rows, tokenizer, batch

    def __len__(self) -> int:
        return len(self._rows)

    def first_tokens(self, count: float) -> "HeldOut":
        """The first rows that have at most so many tokens together, and at least one row.

        Args:
            count: Number of tokens, including those without loss.
        """
        taken = 0
        for length in self._rows["length"]:
            count -= length
            if taken and count < 0:
                break
            taken += 1
        return HeldOut(self._rows.select(range(taken)), self._tokenizer, self._batch)

    def loss(self, model: Any) -> float:
        """Mean negative log-likelihood per trained token, in nats.

        Args:
            model: A causal language model in evaluation mode.
        """
        return held_out_loss(model, self._tokenizer, self._rows, self._batch)[0]

"""Loss on the held-out rows of a prepared dataset: the one way it is measured, while training and after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.data.tokenization import IGNORED
from thriftune.distributed import Rank
from thriftune.training.collation import PaddingCollator

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_ALONE = Rank(index=0, local_index=0, world_size=1)


def held_out_rows(dataset_dir: Path, at_most: int) -> "Dataset":
    """The held-out rows of a prepared dataset, or as many of them, chosen at random, and always the same ones.

    Args:
        dataset_dir: A prepared dataset.
        at_most: Number of rows.
    """
    rows = load_split(dataset_dir, VALIDATION)
    if len(rows) <= at_most:
        return rows
    return rows.shuffle(seed=0, keep_in_memory=True).select(range(at_most))  # sources are often sorted


def held_out_loss(
    model: Any, tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", batch: int, rank: Rank = _ALONE
) -> tuple[float, int]:
    """Loss per trained token: summed over all rows and divided once, so that no batch weighs more than its tokens.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: Where this process stands among those that share the rows; each of them runs the model as often.

    Returns:
        Mean loss in nats and the number of tokens it is over, over all ranks.
    """
    import torch

    collate = PaddingCollator(tokenizer)
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    batches = [by_length[start : start + batch] for start in range(0, len(rows), batch)]
    for first in range(0, len(batches), rank.world_size):
        mine = first + rank.index
        part = batches[min(mine, len(batches) - 1)]
        inputs = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in part]).items()}
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        if mine < len(batches):  # else another rank has counted it
            total += float(loss)
            tokens += int((labels != IGNORED).sum())
    if rank.world_size > 1:
        totals, counts = zip(*distributed.gather_objects((total, tokens)), strict=True)
        total, tokens = sum(totals), sum(counts)
    return total / tokens, tokens


class HeldOut:
    """Held-out rows, and the loss of a whole model on them in one process.

    Args:
        rows: Rows with input_ids and labels.
        tokenizer: The model's, for padding.
        batch: Rows per forward pass.
    """

    def __init__(self, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", batch: int) -> None:
        self._rows, self._tokenizer, self._batch = rows, tokenizer, batch

    def __len__(self) -> int:
        return len(self._rows)

    def first_tokens(self, count: float) -> "HeldOut":
        """As many rows from the first as have so many tokens together, and one at least.

        Args:
            count: Tokens, with those that carry no loss.
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

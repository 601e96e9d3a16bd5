"""Batches of rows for first values that depend on rows, before a training."""

from typing import TYPE_CHECKING, Any

from thriftune.data.tokenization import IGNORED
from thriftune.errors import ConfigError
from thriftune.methods.base import Batch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer


def first_batches(trainer: "Trainer", rows: "Dataset", seed: int, count: int, tokens: int) -> list[Batch]:
    """Collate some of the rows to train on, the same on every rank, into batches.

    Args:
        trainer: The trainer, which collates them.
        rows: Rows to train on.
        seed: Seed of the order that they are taken in: those of a source follow one another in a dataset.
        count: Number of batches; fewer if there are too few rows.
        tokens: Tokens with a label that each batch has at least.

    Returns:
        The batches, at least one.

    Raises:
        ConfigError: All rows together have fewer such tokens.
    """
    shuffled = rows.shuffle(seed=seed, keep_in_memory=True)
    batches: list[Batch] = []
    part: list[dict[str, Any]] = []
    labelled = 0
    for row in shuffled:
        part.append(dict(row))
        labelled += sum(label != IGNORED for label in row["labels"])
        if labelled >= tokens:  # not of a micro batch, which may differ from one attempt to the next
            batches.append(_collated(trainer, part))
            part, labelled = [], 0
        if len(batches) == count:
            break
    if not batches:
        raise ConfigError.single(
            "lora.rank",
            tokens,
            "is more than the rows have tokens with a loss, from which the first values are computed.",
            "Use a smaller rank, more rows, or leave lora.init out.",
            code="no-training-rows",
        )
    return batches


def _collated(trainer: "Trainer", part: list[dict[str, Any]]) -> Batch:
    collated: Batch = trainer.data_collator(part)
    return collated

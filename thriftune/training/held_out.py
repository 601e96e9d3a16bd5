"""Measure the loss on the held-out rows of a prepared dataset, in the same way during and after training."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thriftune import distributed
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.distributed import Rank
from thriftune.models.next_tokens import OUTPUT_BYTES, Seen
from thriftune.training.collation import PaddingCollator
from thriftune.training.objective import LANGUAGE, Objective

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ALONE = Rank(index=0, local_index=0, world_size=1)
_LARGEST_EXPONENT = 700  # exp() of more overflows a float
# Keys in the Trainer's log.
ACCURACY, MACRO_F1, GENERAL_LOSS = "eval_accuracy", "eval_macro_f1", "eval_general_loss"


@dataclass(frozen=True)
class EvalReport:
    """The measurements of one model.

    Attributes:
        loss: Mean negative log-likelihood per trained token of the held-out rows, in nats; of a classifier, per row.
        perplexity: exp(loss); None for a classifier.
        tokens: Number of tokens in the mean; of a classifier, of rows.
        prompts: The prompts.
        answers: The model's answer to each prompt.
        accuracy: Share of the rows whose class was named; None for a language model.
        macro_f1: F1 of each class, and then the mean over the classes; None for a language model.
        general_loss: Mean per token of the right answers to general questions, in nats; None where not measured.
    """

    loss: float
    perplexity: float | None
    tokens: int
    prompts: list[str]
    answers: list[str]
    accuracy: float | None = None
    macro_f1: float | None = None
    general_loss: float | None = None

    @classmethod
    def of(cls, losses: "RowLosses", prompts: list[str], answers: list[str]) -> Self:
        """The report of what was measured.

        Args:
            losses: The losses of the rows.
            prompts: The prompts.
            answers: The model's answer to each.
        """
        measures = (losses.accuracy, losses.macro_f1, losses.general_loss)
        return cls(losses.mean, losses.perplexity, losses.count, prompts, answers, *measures)

    @property
    def quality(self) -> str:
        """What the loss means, in words: the perplexity, or how many classes were right."""
        return in_words(self.perplexity, self.accuracy, self.macro_f1)

    @property
    def counted(self) -> str:
        """What the loss is a mean of, in words."""
        return f"{self.tokens:,} {'tokens' if self.accuracy is None else 'rows'}"


@dataclass(frozen=True)
class RowLosses:
    """The loss of each of several rows.

    Attributes:
        sums: Summed negative log-likelihood of the trained tokens of each row, in nats.
        tokens: Number of trained tokens of each row; of a classifier, 1.
        guesses: Likeliest class of each row; empty for a language model.
        classes: The class of each row's label; empty for a language model.
        general_loss: Mean per token of the right answers to general questions, in nats; None where not measured.
    """

    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    guesses: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    general_loss: float | None = None

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
        return RowLosses(self.sums[:rows], self.tokens[:rows], self.guesses[:rows], self.classes[:rows])

    @property
    def perplexity(self) -> float | None:
        """exp() of the mean loss; None for a classifier, of which it says nothing."""
        return None if self.classes else perplexity_of(self.mean)

    @property
    def accuracy(self) -> float | None:
        """Share of the rows whose class is the likeliest; None for a language model."""
        if not self.classes:
            return None
        return sum(guess == true for guess, true in zip(self.guesses, self.classes, strict=True)) / len(self.classes)

    @property
    def macro_f1(self) -> float | None:
        """Mean of the F1 of every class that a label or a guess has; None for a language model.

        As scikit-learn counts it, so that a rare class counts as much as a common one.
        """
        if not self.classes:
            return None
        right = Counter(true for guess, true in zip(self.guesses, self.classes, strict=True) if guess == true)
        named = Counter(self.guesses) + Counter(self.classes)
        return sum(2 * right[number] / count for number, count in named.items()) / len(named)

    @property
    def logged(self) -> dict[str, float]:
        """What the log says beside the loss."""
        measures = {"eval_perplexity": self.perplexity, ACCURACY: self.accuracy, MACRO_F1: self.macro_f1}
        measures[GENERAL_LOSS] = self.general_loss
        return {name: value for name, value in measures.items() if value is not None}

    @property
    def quality(self) -> str:
        """What the loss means, in words."""
        return in_words(self.perplexity, self.accuracy, self.macro_f1)


def in_words(perplexity: float | None, accuracy: float | None, macro_f1: float | None) -> str:
    """The measures of a model beside its loss, those that it has.

    Args:
        perplexity: exp() of its loss.
        accuracy: Share of the classes that it names rightly, from 0 to 1.
        macro_f1: Mean of the F1 of the classes.
    """
    measures = [("perplexity", perplexity, ".2f"), ("accuracy", accuracy, ".1%"), ("macro-F1", macro_f1, ".3f")]
    return ", ".join(f"{name} {value:{form}}" for name, value, form in measures if value is not None)


def perplexity_of(loss: float) -> float:
    """exp() of a loss in nats; infinite where the result is too large for a float.

    Args:
        loss: Mean negative log-likelihood per token.
    """
    return math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf


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
    rank: Rank = ALONE,
    on_batch: Callable[[], None] = lambda: None,
    objective: Objective = LANGUAGE,
    seen: Seen | None = None,
) -> RowLosses:
    """Measure the loss of each row, with rows of similar length in a batch.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: This process among those that share the rows; all of them run the model equally often.
        on_batch: Called after each batch of this process.
        objective: What the model has learnt from rows.
        seen: Told of the outputs of each row of this process, in an order that is the same for every model.

    Returns:
        The losses of all rows in their order, on every rank.
    """
    collate = PaddingCollator(tokenizer)
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    batches = [by_length[start : start + batch] for start in range(0, len(rows), batch)]
    found: dict[int, tuple[float, ...]] = {}
    for first in range(0, len(batches), rank.world_size):
        mine = first + rank.index
        part = batches[min(mine, len(batches) - 1)]
        inputs = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in part]).items()}
        columns = objective.measure(model, inputs, seen)
        if mine < len(batches):  # else another rank has measured it
            found.update(zip(part, zip(*(column.tolist() for column in columns), strict=True), strict=True))
        on_batch()
    if rank.world_size > 1:
        found = {row: loss for part in distributed.gather_objects(found) for row, loss in part.items()}
    measured: Any = zip(*(found[row] for row in range(len(rows))), strict=True)
    return RowLosses(*measured)


def held_out_loss(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    batch: int,
    rank: Rank = ALONE,
    objective: Objective = LANGUAGE,
) -> tuple[float, int]:
    """Measure the mean loss per trained token, or of a classifier per row.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: This process among those that share the rows.
        objective: What the model has learnt from rows.

    Returns:
        Mean loss in nats over all ranks, and the number of tokens in the mean.
    """
    losses = row_losses(model, tokenizer, rows, batch, rank, objective=objective)
    return losses.mean, losses.count


class HeldOut:
    """Held-out rows, to measure the loss of a whole model in one process.

    Args:
        rows: Rows with input_ids and labels.
        tokenizer: The model's tokenizer, for padding.
        batch: Most rows per forward pass; fewer of long rows with a large vocabulary.
        objective: What the model has learnt from rows.
    """

    def __init__(
        self, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", batch: int, objective: Objective = LANGUAGE
    ) -> None:
        self._rows, self._tokenizer, self._batch, self._objective = rows, tokenizer, batch, objective

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
        return HeldOut(self._rows.select(range(taken)), self._tokenizer, self._batch, self._objective)

    def loss(self, model: Any, seen: Seen | None = None) -> float:
        """Mean negative log-likelihood per trained token, or per row, in nats.

        Args:
            model: The model, in evaluation mode.
            seen: Told of the outputs of each row, in an order that is the same for every model.
        """
        longest = max(self._rows["length"])
        outputs = 4 * longest * int(model.config.get_text_config().vocab_size)
        batch = max(1, min(self._batch, OUTPUT_BYTES // outputs))
        return row_losses(model, self._tokenizer, self._rows, batch, objective=self._objective, seen=seen).mean

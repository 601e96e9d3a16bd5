"""The held-out rows of a run as a benchmark: the loss of each, and what the model answers to the first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.config.benchmarks import HELD_OUT
from thriftune.data.tokenization import IGNORED
from thriftune.inference.benchmarks.results import LOSS, ItemResult
from thriftune.models.answering import Continuation
from thriftune.training.held_out import held_out_rows, row_losses

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Rows that the model answers besides: what a loss does not show, such as answers without an end, shows in few.
ANSWERED = 64


def rows_of(dataset_dir: Path, limit: int) -> "Dataset":
    """The held-out rows, in an order that is always the same.

    Args:
        dataset_dir: A prepared dataset.
        limit: Most rows.
    """
    return held_out_rows(dataset_dir, limit)


def measure(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    numbers: Sequence[int],
    batch: int,
    answers: "dict[int, Continuation]",
) -> Iterator[ItemResult]:
    """Measure the loss of rows.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        rows: What `rows_of` returned.
        numbers: The rows to measure.
        batch: Rows per forward pass.
        answers: What the model wrote, by the number of the row.

    Yields:
        The result of each row.
    """
    if not numbers:
        return
    part = rows.select(list(numbers))
    losses = row_losses(model, tokenizer, part, batch)
    for number, row, loss, tokens in zip(numbers, part, losses.sums, losses.tokens, strict=True):
        start = answer_start(row)
        prompt = tokenizer.decode(row["input_ids"][:start])
        said = answers.get(number)
        yield ItemResult(
            task=HELD_OUT,
            item=f"{number:06}",
            group="",
            prompt=str(prompt),
            prompt_hash=artifacts.key_of(repr(row["input_ids"]), repr(row["labels"])),
            expected=str(tokenizer.decode(row["input_ids"][start:], skip_special_tokens=True)).strip(),
            answer=said.text if said else "",
            scores={LOSS: loss},
            tokens=tokens,
            stopped=said.stopped if said else None,
            written=said.tokens if said else None,
        )


def answer_start(row: dict[str, Any]) -> int:
    """Where the first answer of a row starts: at its first trained token, or in the middle if there is no question.

    Args:
        row: A row with input_ids and labels.
    """
    first = next(number for number, label in enumerate(row["labels"]) if label != IGNORED)
    return first if first > 1 else max(1, len(row["labels"]) // 2)

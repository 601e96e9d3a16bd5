"""What parity is measured on: token rows with the positions that were trained, and prompts to answer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config import DataFormat
from thriftune.data import general, prepared
from thriftune.data.examples import RowError
from thriftune.data.questions import encode_text, prompt_text
from thriftune.data.readers import decode, read_file
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError, Problem
from thriftune.training.held_out import held_out_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 64
PROMPTS = 8
_COLUMNS = ("prompt", "answer")
_REMEDY = 'Write {"prompt": "...", "answer": "..."} for each row, or leave rows out.'


@dataclass(frozen=True)
class Row:
    """A row of tokens.

    Attributes:
        tokens: Token ids.
        trained: The positions whose tokens were trained: their probabilities are compared.
    """

    tokens: tuple[int, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """What parity is measured on.

    Attributes:
        style: Form of a question in training.
        prompts: Questions, which are compared token by token and answered.
        rows: Rows whose next tokens are compared.
    """

    style: DataFormat
    prompts: tuple[str, ...]
    rows: tuple[Row, ...]


def of_dataset(dataset_dir: Path, tokenizer: "PreTrainedTokenizerBase", style: DataFormat, most: int = ROWS) -> Asked:
    """The held-out rows of a prepared dataset, with their questions as prompts; general ones if it has none.

    Args:
        dataset_dir: A prepared dataset.
        tokenizer: Tokenizer of what was trained.
        style: The format of its questions.
        most: Most rows.
    """
    rows = []
    for row in held_out_rows(dataset_dir, most):
        content: Any = row
        trained = [place for place, label in enumerate(content["labels"]) if label != IGNORED and place]
        rows.append(Row(tuple(content["input_ids"]), tuple(trained)))
    if not any(row.trained for row in rows):  # a dataset without held-out rows
        return Asked(style, prompts_of(dataset_dir), of_general(tokenizer, style).rows)
    return Asked(style, prompts_of(dataset_dir), tuple(rows))


def prompts_of(dataset_dir: Path) -> tuple[str, ...]:
    """Held-out questions of a prepared dataset; general ones if it has none.

    Args:
        dataset_dir: A prepared dataset.
    """
    samples = [str(sample["question"]) for sample in prepared.load_samples(dataset_dir)[:PROMPTS]]
    return tuple(samples) or tuple(prompt for prompt, _ in _general(PROMPTS))


def of_file(file: Path, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> Asked:
    """The rows of a data file with the columns prompt and answer.

    Args:
        file: JSON Lines, JSON, CSV, TSV or Parquet.
        tokenizer: Tokenizer of what was trained.
        style: Form of a question in training.

    Raises:
        DataError: The file cannot be read, is empty, or lacks a text; names the row.
    """
    pairs = list(_pairs_in(file))
    if not pairs:
        raise DataError.single("rows", file, "holds no rows.", _REMEDY)
    return of_pairs(pairs[:ROWS], tokenizer, style)


def of_general(tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> Asked:
    """The general questions that ship with the package, with their right answers.

    Args:
        tokenizer: Tokenizer of what was trained.
        style: Form of a question in training.
    """
    return of_pairs(list(_general(ROWS)), tokenizer, style)


def of_pairs(pairs: Sequence[tuple[str, str]], tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> Asked:
    """Questions and their answers, in the form that training gave them, with EOS after the answer.

    Args:
        pairs: Questions with answers.
        tokenizer: Tokenizer of what was trained.
        style: Form of a question in training.
    """
    rows = tuple(_row(prompt, answer, tokenizer, style) for prompt, answer in pairs)
    return Asked(style, tuple(prompt for prompt, _ in pairs[:PROMPTS]), rows)


def _row(prompt: str, answer: str, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> Row:
    opened = encode_text(prompt_text(prompt, tokenizer, style), tokenizer, style)
    whole = encode_text(prompt_text(prompt, tokenizer, style, answer=answer), tokenizer, style)
    # A token may join the last character of the prompt with the first of the answer.
    same = next((at for at, pair in enumerate(zip(opened, whole, strict=False)) if pair[0] != pair[1]), len(opened))
    whole += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return Row(tuple(whole), tuple(range(max(1, min(same, len(whole) - 1)), len(whole))))


def _general(most: int) -> Iterator[tuple[str, str]]:
    """General questions, spread over their groups."""
    items = general.general_items()
    for item in items[:: max(1, len(items) // most)][:most]:
        yield item.question, item.accepted[0]


def _pairs_in(file: Path) -> Iterable[tuple[str, str]]:
    try:
        for number, raw in read_file(file, "line", _COLUMNS):
            yield _pair(raw, f"{file.name}, row {number}")
    except DataError as error:
        raise DataError([Problem("rows", p.value, p.message, p.remedy, p.code) for p in error.problems]) from error


def _pair(raw: Any, place: str) -> tuple[str, str]:
    """The question and the answer of a row.

    Raises:
        DataError: One of them is missing, or no text.
    """
    try:
        row = decode(raw)
    except RowError as error:
        raise DataError.single("rows", place, f"{error}.", _REMEDY) from error
    for column in _COLUMNS:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise DataError.single("rows", place, f"has no text as {column}.", _REMEDY)
    return str(row["prompt"]), str(row["answer"])

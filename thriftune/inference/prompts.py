"""Read prompts from a file in any format that training data may have; each prompt is a text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thriftune.config.formats import ending_of
from thriftune.data.examples import RawRow, RowError
from thriftune.data.readers import NotAnObjectError, columns_of, decode, read_file
from thriftune.data.tokenization import is_unicode
from thriftune.errors import DataError

_COLUMN = "prompt"
ADAPTER_COLUMN = "adapter"
_SOURCE = "data.source"  # what the readers call a file
_SHOWN = 80  # characters of a wrong prompt that a message shows
_REMEDY = f'Write {{"{_COLUMN}": "..."}} for each, a column named {_COLUMN}, or a .txt file with one prompt per line.'


@dataclass(frozen=True)
class Prompt:
    """What to ask, and whom.

    Attributes:
        text: The question.
        adapter: Name of the adapter that answers; empty where every adapter does.
        place: Where it was read, for messages; empty for a prompt that was given itself.
    """

    text: str
    adapter: str = ""
    place: str = ""


def read_prompts(file: Path) -> list[str]:
    """The texts of the prompts in a file, as `iterate_prompts` reads them.

    Args:
        file: As there.

    Raises:
        DataError: As there.
    """
    return [prompt.text for prompt in iterate_prompts(file)]


def iterate_prompts(file: Path) -> Iterator[Prompt]:
    """Read prompts from a file, with the readers of training data, one at a time.

    Args:
        file: JSON Lines, JSON, CSV, TSV or Parquet with a column `prompt`, where JSON may also be a list of texts; or a
            text file with one prompt per line, without its empty lines. A column `adapter` names who answers.

    Yields:
        The prompts, in order.

    Raises:
        DataError: The file cannot be read, is empty, or has a prompt that is not text; names the line or row.
    """
    ending = ending_of(file.name) or ""
    column = "text" if ending.startswith(".txt") else _COLUMN
    counted = "line" if ending.startswith(".jsonl") else "row"
    is_empty = True
    for number, raw in _rows_of(file, column):
        is_empty = False
        yield _prompt_in(raw, column, f"{file.name}, {counted} {number}")
    if is_empty:
        raise DataError.single("prompts_file", file, "holds no prompts.", "Give at least one.")


def _rows_of(file: Path, column: str) -> Iterator[tuple[int, RawRow]]:
    """The rows of a file with their numbers, one at a time."""
    try:
        if ending_of(file.name) == ".parquet":  # whose other columns are not read
            _require_no_other(columns_of(file), file.name)
        yield from read_file(file, "line", (column, ADAPTER_COLUMN))
    except DataError as error:
        problems = [
            replace(problem, field="prompts_file") if problem.field == _SOURCE else problem
            for problem in error.problems
        ]
        raise DataError(problems) from error


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuse an empty list of prompts, or an empty prompt.

    Args:
        prompts: The prompts.

    Raises:
        DataError: There are no prompts, or one of them is empty.
    """
    if not prompts:
        raise DataError.single("prompts", "[]", "there is nothing to answer.", "Give at least one prompt.")
    for number, prompt in enumerate(prompts):
        if problem := _problem_of(prompt):
            raise DataError.single(f"prompts.{number}", repr(prompt[:_SHOWN]), problem, "Write another, or remove it.")


def _require_no_other(columns: Iterable[str], place: str) -> None:
    """Refuse a column that is meant to name who answers, and does not: each adapter would answer, without a word.

    Args:
        columns: Names of columns.
        place: Where they are, for the message.

    Raises:
        DataError: One is nearly the name of that column.
    """
    for name in columns:
        if name != ADAPTER_COLUMN and name.strip().lower().removesuffix("s") == ADAPTER_COLUMN:
            message = f"is a column that would be ignored: that of who answers is {ADAPTER_COLUMN}."
            raise DataError.single(place, repr(name), message, f"Name it {ADAPTER_COLUMN}, or remove it.")


def _prompt_in(raw: RawRow, column: str, place: str) -> Prompt:
    """The prompt in a row."""
    adapter: Any = None
    try:
        row = decode(raw)
        prompt = row.get(column)
        problem = _problem_of(prompt) if column in row else f"has no {_COLUMN}."
        adapter = row.get(ADAPTER_COLUMN)
        _require_no_other(row, place)
    except NotAnObjectError as error:
        prompt = error.value
        problem = _problem_of(prompt) if isinstance(prompt, str) else f"{error}."
    except RowError as error:
        prompt, problem = None, f"{error}."
    if problem:
        raise DataError.single(place, _shown(raw), problem, _REMEDY)
    if not isinstance(adapter, str | None) or not is_unicode(adapter or ""):
        kind = "text that is not UTF-8" if isinstance(adapter, str) else f"of type {type(adapter).__name__}"
        message = f"its {ADAPTER_COLUMN} is {kind}, and not a name."
        raise DataError.single(place, _shown(raw), message, "Write the name of an adapter, or leave it out.")
    return Prompt(str(prompt), (adapter or "").strip(), place)


def _problem_of(prompt: Any) -> str:
    """Why something cannot be a prompt; empty where it can."""
    if not isinstance(prompt, str):
        return f"its {_COLUMN} is {'null' if prompt is None else f'of type {type(prompt).__name__}'}, and not text."
    if not prompt.strip():
        return "is empty."
    return "" if is_unicode(prompt) else "is not UTF-8."


def _shown(raw: RawRow) -> str:
    """A row, shortened for a message."""
    if isinstance(raw, bytes):
        return raw.decode(errors="replace")[:_SHOWN]
    value = raw.value if isinstance(raw, NotAnObjectError) else raw
    return "" if isinstance(value, RowError) else json.dumps(value, default=str)[:_SHOWN]

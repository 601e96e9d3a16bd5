"""Read prompts from a file in any format that training data may have; each prompt is a text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune.config.formats import ending_of
from thriftune.data.examples import RawRow, RowError
from thriftune.data.readers import NotAnObjectError, decode, read_file
from thriftune.data.tokenization import is_unicode
from thriftune.errors import DataError

_COLUMN = "prompt"
_SHOWN = 80  # characters of a wrong prompt that a message shows
_REMEDY = f'Write {{"{_COLUMN}": "..."}} for each, a column named {_COLUMN}, or a .txt file with one prompt per line.'


def read_prompts(file: Path) -> list[str]:
    """Read prompts from a file, with the readers of training data.

    Args:
        file: JSON Lines, JSON, CSV, TSV or Parquet with a column `prompt`, where JSON may also be a list of texts; or a
            text file with one prompt per line, without its empty lines.

    Returns:
        The prompts, in order.

    Raises:
        DataError: The file cannot be read, is empty, or has a prompt that is not text; names the line or row.
    """
    ending = ending_of(file.name) or ""
    column = "text" if ending.startswith(".txt") else _COLUMN
    counted = "line" if ending.startswith(".jsonl") else "row"
    prompts = [_prompt_in(raw, column, f"{file.name}, {counted} {number}") for number, raw in _rows_of(file, column)]
    if not prompts:
        raise DataError.single("prompts_file", file, "holds no prompts.", "Give at least one.")
    return prompts


def _rows_of(file: Path, column: str) -> Iterator[tuple[int, RawRow]]:
    """The rows of a file with their numbers, one at a time."""
    try:
        yield from read_file(file, "line", (column,))
    except DataError as error:
        raise DataError([replace(problem, field="prompts_file") for problem in error.problems]) from error


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


def _prompt_in(raw: RawRow, column: str, place: str) -> str:
    """The prompt in a row."""
    try:
        row = decode(raw)
        prompt = row.get(column)
        problem = _problem_of(prompt) if column in row else f"has no {_COLUMN}."
    except NotAnObjectError as error:
        prompt = error.value
        problem = _problem_of(prompt) if isinstance(prompt, str) else f"{error}."
    except RowError as error:
        prompt, problem = None, f"{error}."
    if problem:
        raise DataError.single(place, _shown(raw), problem, _REMEDY)
    return str(prompt)


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

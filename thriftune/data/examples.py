"""Examples between rows and tokens: texts with marked answers, and conversations."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thriftune.limits import TEXT_CHARACTERS, TOO_DEEP, TURNS, is_too_deep

Row = Mapping[str, Any]
Cause = Literal["row", "chat template"]  # the fault lies in the row itself, or in the chat template
NOTHING: tuple[object, ...] = (None, "", [], {})  # values that count as empty


class RowError(ValueError):
    """A row, or a part of one, cannot be used; the message says why."""

    cause: Cause = "row"


class TemplateRowError(RowError):
    """The model's chat template cannot render a row, although the row itself may be fine."""

    cause = "chat template"


# A row as read. A line of JSON stays bytes until a worker parses it.
RawRow = bytes | dict[str, Any] | RowError


@dataclass(frozen=True)
class MarkedText:
    """A text and the parts of it that are answers.

    Attributes:
        text: The text for the model, without BOS and EOS.
        answers: Half-open (start, end) character ranges of `text` to train on.
        question: The part of it that a person would ask, to show next to an answer.
        is_document: Whether it is joined with other documents and cut into blocks, instead of being a separate row.
        is_rendered: Whether a chat template wrote it, including the special tokens at its start.
        label: Number of its class, for a text that is not written but classified; else None.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    question: str = ""
    is_document: bool = False
    is_rendered: bool = False
    label: int | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages that the tokenizer's own chat template turns into text.

    Attributes:
        messages: Each with `role` and `content`, and the keys for tools; the last one is the assistant's.
        tools: Descriptions of the functions that the assistant may call, as the chat template takes them.
        question: The last message of the user.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    question: str = ""


Example = MarkedText | Conversation


def require_moderate(characters: int, turns: int = 1) -> None:
    """Refuse a row that would expand too much, before it does.

    Args:
        characters: Characters of all texts that would be made from it.
        turns: Messages, earlier turns or corrections in it.

    Raises:
        RowError: It is too much.
    """
    if turns > TURNS:
        raise RowError(f"has more than {TURNS:,} turns")
    if characters > TEXT_CHARACTERS:
        raise RowError(f"makes more than {TEXT_CHARACTERS >> 20} MiB of text")


def text_in(row: Row, column: str) -> str:
    """The text in a column.

    Args:
        row: The row.
        column: Name of the column.

    Raises:
        RowError: It is missing, empty, or not text.
    """
    value = row.get(column)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise RowError(f"column {column!r} holds {found}, not text")
    if not value or value.isspace():
        raise RowError(f"column {column!r} is empty")
    return value


def optional_text_in(row: Row, column: str) -> str:
    """The text in an optional column; empty if it is missing.

    Args:
        row: The row.
        column: Name of the column.

    Raises:
        RowError: It is not text.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise RowError(f"column {column!r} holds a {type(value).__name__}, not text")
    return value or ""


def structure_in(value: Any, column: str) -> Any:
    """A list or object in a column, which CSV holds as JSON text; None if it is empty.

    Args:
        value: The value of the column.
        column: Name of the column.

    Raises:
        RowError: It is text, but not JSON.
    """
    if not isinstance(value, str):
        return value
    return json_in(value, f"column {column!r} is") if value.strip() else None


def json_in(text: str, named: str) -> Any:
    """Parse JSON text.

    Args:
        text: The text.
        named: Start of an error message: what the text is, and "is" or "are".

    Raises:
        RowError: It is not JSON, or nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise RowError(f"{named} {TOO_DEEP}") from error
    except ValueError as error:
        raise RowError(f"{named} not JSON") from error
    if is_too_deep(value):
        raise RowError(f"{named} {TOO_DEEP}")
    return value


def all_values(row: Row, columns: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Every text in the columns of a row, at any depth, with the name of its column."""
    pending: list[tuple[str, Any]] = [(name, row.get(name)) for name in columns]
    while pending:
        name, value = pending.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            pending += [(name, part) for part in (*value.keys(), *value.values())]
        elif isinstance(value, list | tuple):
            pending += [(name, part) for part in value]

"""What rows become before they are tokens: texts with marked answers, and conversations."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thriftune.limits import TEXT_CHARACTERS, TOO_DEEP, TURNS, is_too_deep

Row = Mapping[str, Any]
Cause = Literal["row", "chat template"]  # what is wrong with a row: what it says, or what renders it
NOTHING: tuple[object, ...] = (None, "", [], {})  # what a key holds that says nothing


class RowError(ValueError):
    """A row, or a part of one, cannot be used; the message says why."""

    cause: Cause = "row"


class TemplateRowError(RowError):
    """The model's chat template makes nothing of a row that may be as good as any."""

    cause = "chat template"


# A line of JSON stays bytes until a worker parses it.
RawRow = bytes | dict[str, Any] | RowError


@dataclass(frozen=True)
class MarkedText:
    """A text and the parts of it that are answers.

    Attributes:
        text: What the model reads, without BOS and EOS.
        answers: Half-open (start, end) character ranges of `text` to train on.
        question: The part of it that a person would ask, to show beside an answer.
        is_document: Whether it is joined with other documents and cut into blocks, instead of being a row of its own.
        is_rendered: Whether a chat template wrote it, with all special tokens that open it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    question: str = ""
    is_document: bool = False
    is_rendered: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages that the tokenizer's own chat template turns into text.

    Attributes:
        messages: Each with `role` and `content`, and what tools need; the last one is the assistant's.
        tools: Descriptions of the functions that the assistant may call, as the chat template takes them.
        question: What the user said last.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    question: str = ""


Example = MarkedText | Conversation


def require_moderate(characters: int, turns: int = 1) -> None:
    """Refuse a row that would become much more than it is, before it does.

    Args:
        characters: Of all texts that would be made of it.
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

    Raises:
        RowError: There is none, it is empty, or it is not text.
    """
    value = row.get(column)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise RowError(f"column {column!r} holds {found}, not text")
    if not value or value.isspace():
        raise RowError(f"column {column!r} is empty")
    return value


def optional_text_in(row: Row, column: str) -> str:
    """The text in a column that rows may lack; empty where there is none.

    Raises:
        RowError: It is not text.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise RowError(f"column {column!r} holds a {type(value).__name__}, not text")
    return value or ""


def structure_in(value: Any, column: str) -> Any:
    """What a column holds, which CSV has as JSON text; None where that is empty.

    Raises:
        RowError: It is text, and not JSON.
    """
    if not isinstance(value, str):
        return value
    return json_in(value, f"column {column!r} is") if value.strip() else None


def json_in(text: str, named: str) -> Any:
    """What a text says that is JSON.

    Args:
        text: The text.
        named: How an error begins: what it is, and "is" or "are".

    Raises:
        RowError: It is not JSON, or nested too deep to be handed on.
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
    """Every text in the columns of a row, however deep, with the name of its column."""
    pending: list[tuple[str, Any]] = [(name, row.get(name)) for name in columns]
    while pending:
        name, value = pending.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            pending += [(name, part) for part in (*value.keys(), *value.values())]
        elif isinstance(value, list | tuple):
            pending += [(name, part) for part in value]

"""What rows become before they are tokens: texts with marked answers, and conversations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row, or a part of one, cannot be used; the message says why."""


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

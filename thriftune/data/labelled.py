"""Rows of a text and the name of its class, for classification: a label a row, where the class is read from.

A labelled row has the tokens that the tokenizer itself makes of its text, so that whoever uses the model need not know
how it was trained. Its label stands at its last token, whose output transformers' classifiers take, and nowhere else.
"""

from collections.abc import Sequence

from thriftune.data.examples import MarkedText, Row, RowError, text_in
from thriftune.data.tokenization import TokenRow, classified

_SHOWN = 80  # characters of a label in a message


def read(row: Row, labels: Sequence[str]) -> list[MarkedText]:
    """A row of the columns text and label.

    Args:
        row: The row.
        labels: Names of the classes; without any, labels are not looked at.

    Raises:
        RowError: It has no text, or no label that is one of these.
    """
    text = text_in(row, "text")
    return [MarkedText(text, (), text, label=class_of(row.get("label"), labels) if labels else None)]


def class_of(value: object, labels: Sequence[str]) -> int:
    """The number of a class by what a row says, from 0.

    Args:
        value: A name as text; or a whole number, which counts in the order of the names unless one is a number itself.
        labels: Names of the classes.

    Raises:
        RowError: It is none of them.
    """
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        raise RowError("column 'label' is empty")
    if isinstance(value, float) and value.is_integer():  # a table with gaps holds whole numbers as floats
        value = int(value)
    if not isinstance(value, str | int):
        raise RowError(f"column 'label' holds a {type(value).__name__}, not the name of a class")
    said, names = str(value).strip(), [label.strip() for label in labels]
    if isinstance(value, bool):  # as JSON and YAML write it
        said = said.lower()
    if said in names:
        return names.index(said)
    is_number = said.isascii() and said.isdigit()
    if is_number and not any(name.isascii() and name.lstrip("-").isdigit() for name in names):
        if len(said) <= len(str(len(names))) and int(said) < len(names):
            return int(said)
        raise RowError(
            f"column 'label' holds class {said[:_SHOWN]}, but classification.labels has {len(names)} classes"
        )
    raise RowError(f"column 'label' holds {said[:_SHOWN]!r}, which is not in classification.labels")


def truncated(row: TokenRow, max_length: int, closing: Sequence[int]) -> TokenRow:
    """The start of a row, as the tokenizer itself truncates a text.

    Args:
        row: A longer row.
        max_length: Longest row, in tokens.
        closing: Tokens that the tokenizer puts behind every text.
    """
    kept = max(1, max_length - len(closing))
    return classified([*row.input_ids[:kept], *closing][:max_length], row.labels[-1])

"""Data formats: each format is a function from a row to examples, registered in one table."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from thriftune.config.formats import COLUMNS, OPTIONAL_COLUMNS, template_fields
from thriftune.data import chat, labelled
from thriftune.data.examples import (
    Example,
    MarkedText,
    Row,
    RowError,
    optional_text_in,
    require_moderate,
    structure_in,
    text_in,
)

# The prompt of Stanford Alpaca, word for word, so that models trained elsewhere on it stay comparable.
# Source: https://github.com/tatsu-lab/stanford_alpaca#data-release
_ALPACA_OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_ALPACA_OPENING_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_OPENING_CHARACTERS = 200
_ALPACA_CHARACTERS = 40  # that the prompt adds around a turn


@dataclass(frozen=True)
class Format:
    """One way to read rows.

    Attributes:
        columns: Columns that a source must have.
        read: Turns a row into examples; raises RowError if nothing in the row can be used, and returns a RowError in
            place of each part that cannot.
        prompt: Turns a bare question into the prompt for a model that was trained on this format.
        optional: Columns that a source may have.
        is_chat: Whether rows are rendered with the tokenizer's chat template.
        is_labelled: Whether rows have a class, and no answer.
        literal: The text between the fields of a template.
        unread: Returns the keys inside a row's columns that are not read, as column[].key.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], Iterable[Example | RowError]]
    prompt: Callable[[str], str] = str
    optional: tuple[str, ...] = ()
    is_chat: bool = False
    is_labelled: bool = False
    literal: str = ""
    unread: Callable[[Row], Iterable[str]] = lambda _row: ()

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.columns, *self.optional)


def alpaca_prompt(instruction: str, context: str = "", system: str = "") -> str:
    """The Alpaca prompt up to the start of the answer; a system prompt replaces its first sentences."""
    opening = system if system.strip() else _ALPACA_OPENING_WITH_INPUT if context.strip() else _ALPACA_OPENING
    return f"{opening}\n\n{_alpaca_turn(instruction, context)}"


def _alpaca_turn(instruction: str, context: str = "") -> str:
    given = f"### Input:\n{context}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction}\n\n{given}### Response:\n"


def correction_prompt(sentence: str) -> str:
    """The request to correct a sentence, up to the start of the correction."""
    return f"Correct this to standard English:\n{sentence}\n\nCorrected:\n"


def quote_prompt(author: str) -> str:
    """The request for a quote, up to the start of the quote."""
    return f"Quote by {author}:\n"


def _answered(prompt: str, answer: str, question: str) -> MarkedText:
    return MarkedText(prompt + answer, ((len(prompt), len(prompt) + len(answer)),), question)


def _read_alpaca(row: Row) -> list[MarkedText]:
    context, system = optional_text_in(row, "input"), optional_text_in(row, "system")
    instruction, answer = text_in(row, "instruction"), text_in(row, "output")
    turns = [*_history(row.get("history")), (instruction, context, answer)]
    require_moderate(sum(_ALPACA_CHARACTERS + sum(map(len, turn)) for turn in turns) + len(system), len(turns))
    parts, answers, end = list[str](), [], 0
    for number, (asked, given, said) in enumerate(turns):
        # The layout of LLaMA-Factory's alpaca template, which trains on earlier answers too.
        prompt = f"\n\n{_alpaca_turn(asked, given)}" if number else alpaca_prompt(asked, given, system)
        parts += (prompt, said)
        answers.append((end + len(prompt), end + len(prompt) + len(said)))
        end = answers[-1][1]
    return [MarkedText("".join(parts), tuple(answers), f"{instruction}\n{context}" if context else instruction)]


def _history(history: Any) -> list[tuple[str, str, str]]:
    """Earlier turns of an Alpaca row: the instruction, an empty input, and the answer."""
    pairs = structure_in(history, "history")
    if pairs is None:
        return []
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(s, str) and s.strip() for s in pair)
        for pair in pairs
    ):
        raise RowError("column 'history' is not a list of [instruction, response] pairs")
    return [(asked, "", said) for asked, said in pairs]


def _read_prompt_completion(row: Row) -> list[MarkedText]:
    prompt = text_in(row, "prompt")
    return [_answered(prompt, text_in(row, "completion"), prompt)]


def _read_text(row: Row) -> list[MarkedText]:
    text = text_in(row, "text")
    return [MarkedText(text, ((0, len(text)),), text[:_OPENING_CHARACTERS], is_document=True)]


def _read_quote(row: Row) -> list[MarkedText]:
    author = text_in(row, "author").strip().rstrip(",")  # english_quotes writes "Oscar Wilde," where a book follows
    if not author:
        raise RowError("column 'author' is empty")
    return [_answered(quote_prompt(author), text_in(row, "quote"), f"A quote by {author}")]


def _read_grammar(row: Row) -> list[MarkedText | RowError]:
    sentence, corrections = text_in(row, "sentence").strip(), row.get("corrections")
    if isinstance(corrections, str):
        if corrections.strip().startswith("[") and corrections.strip().endswith("]"):
            raise RowError("column 'corrections' holds a list written as text; give it in JSON Lines or Parquet")
        corrections = [corrections]
    if not isinstance(corrections, Sequence) or not corrections:
        raise RowError("column 'corrections' holds no correction")
    said = sum(len(correction) for correction in corrections if isinstance(correction, str))
    require_moderate(said + len(corrections) * len(correction_prompt(sentence)), len(corrections))
    examples: list[MarkedText | RowError] = []
    for number, correction in enumerate(corrections, 1):
        if isinstance(correction, str) and correction.strip():
            examples.append(_answered(correction_prompt(sentence), correction.strip(), sentence))
        else:
            examples.append(RowError(f"correction {number} is empty or not text"))
    return examples


def _read_chat(row: Row) -> list[Example]:
    return [chat.read_messages(row.get("messages"), "messages", row.get("tools"), optional_text_in(row, "system"))]


def _read_sharegpt(row: Row) -> list[Example]:
    messages, system = chat.from_sharegpt(row.get("conversations")), optional_text_in(row, "system")
    return [chat.read_messages(messages, "conversations", row.get("tools"), system)]


def _unread_in_chat(row: Row) -> Iterable[str]:
    return chat.unread_in_messages(row.get("messages"), "messages")


def _unread_in_sharegpt(row: Row) -> Iterable[str]:
    return chat.unread_in_messages(row.get("conversations"), "conversations", is_sharegpt=True)


def _format(
    name: str,
    read: Callable[[Row], Iterable[Example | RowError]],
    prompt: Callable[[str], str] = str,
    unread: Callable[[Row], Iterable[str]] | None = None,
) -> Format:
    """A format over its columns in `thriftune.config.formats`; with `unread` given, it is a chat format."""
    row_format = Format(COLUMNS[name], read, prompt, OPTIONAL_COLUMNS.get(name, ()))
    return replace(row_format, is_chat=True, unread=unread) if unread else row_format


FORMATS: dict[str, Format] = {
    "alpaca": _format("alpaca", _read_alpaca, alpaca_prompt),
    "prompt_completion": _format("prompt_completion", _read_prompt_completion),
    "chat": _format("chat", _read_chat, unread=_unread_in_chat),
    "sharegpt": _format("sharegpt", _read_sharegpt, unread=_unread_in_sharegpt),
    "text": _format("text", _read_text),
    "quotes": _format("quotes", _read_quote, quote_prompt),
    "grammar": _format("grammar", _read_grammar, correction_prompt),
    "labelled": replace(_format("labelled", partial(labelled.read, labels=())), is_labelled=True),
}


def template_format(template: str, trained_fields: Sequence[str] = ()) -> Format:
    """A format from a template with columns in braces.

    Args:
        template: For example "Question: {question} Answer: {answer}".
        trained_fields: Fields to train on; if empty, the last one.

    Returns:
        The format. A question for it must be written in the template's form.

    Raises:
        ValueError: The template is invalid.
    """
    fields = template_fields(template)
    trained = set(trained_fields) or {fields[-1]}
    pieces = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    asked = [name for name in fields if name not in trained]

    def read(row: Row) -> list[MarkedText]:
        values = {name: text_in(row, name) for name in fields}
        require_moderate(sum(len(literal) + len(values.get(name or "", "")) for literal, name in pieces))
        text, answers = "", []
        for literal, name in pieces:
            text += literal
            if name is not None:
                start, text = len(text), text + values[name]
                if name in trained:
                    answers.append((start, len(text)))
        return [MarkedText(text, tuple(answers), "\n".join(values[name] for name in asked))]

    return Format(fields, read, literal="\n".join(literal for literal, _ in pieces))


def with_columns(row_format: Format, columns: Mapping[str, str]) -> Format:
    """The same format over columns with other names.

    Args:
        row_format: A format.
        columns: The data's column names, by the format's column names.

    Returns:
        A format whose `columns` are those of the data.
    """
    if not columns:
        return row_format

    # A mapped column is not also the optional column of the same name.
    optional = tuple(n for n in row_format.optional if n in columns or n not in columns.values())

    def mapped(row: Row) -> Row:
        return {name: row.get(columns.get(name, name)) for name in (*row_format.columns, *optional)}

    def read(row: Row) -> Iterable[Example | RowError]:
        try:
            return row_format.read(mapped(row))
        except RowError as error:
            reason = str(error)
            for name, theirs in columns.items():
                reason = reason.replace(f"column {name!r}", f"column {theirs!r}")
            raise RowError(reason) from error

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(columns.get(name, name) for name in names)

    def unread(row: Row) -> Iterable[str]:
        for label in row_format.unread(mapped(row)):
            name, bracket, key = label.partition("[")
            yield columns.get(name, name) + bracket + key

    return replace(
        row_format,
        columns=renamed(row_format.columns),
        read=read,
        optional=renamed(optional),
        unread=unread,
    )


def format_of(
    name: str,
    *,
    columns: Mapping[str, str] = {},
    template: str | None = None,
    trained_fields: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Format:
    """The format that a source's configuration describes.

    Args:
        name: Name in `FORMATS`, or template.
        columns: The data's column names, by the format's column names.
        template: Text of the template, only for format template.
        trained_fields: Fields to train on, only for format template.
        labels: Names of the classes, only for format labelled.

    Returns:
        The format, over the data's own column names.
    """
    row_format = template_format(template or "", trained_fields) if name == "template" else FORMATS[name]
    if labels:
        row_format = replace(row_format, read=partial(labelled.read, labels=labels))
    return with_columns(row_format, columns)


def question_prompt(name: str, question: str) -> str:
    """A bare question in the form that a model trained on a format expects; unchanged for format template."""
    return FORMATS[name].prompt(question) if name in FORMATS else question

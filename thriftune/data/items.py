"""Items of benchmarks in our own formats, read from JSON Lines: every problem of a file is found before one is said."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from thriftune.config.benchmarks import ItemFormat
from thriftune.data.examples import RowError
from thriftune.data.readers import decode, read_file
from thriftune.errors import DataError, Problem

_SHOWN = 80  # characters of a value in a message
_MOST_PROBLEMS = 50
_COMMON = ("id", "question", "answer", "group")
_KEYS: dict[ItemFormat, tuple[str, ...]] = {"multiple_choice": (*_COMMON, "choices"), "exact_answer": _COMMON}
_REMEDIES: dict[ItemFormat, str] = {
    "multiple_choice": 'Write {"id": "1", "question": "...", "choices": ["...", "..."], "answer": 0}.',
    "exact_answer": 'Write {"id": "1", "question": "...", "answer": "..."}, or a list of answers that are right.',
}


@dataclass(frozen=True)
class Item:
    """A question with a known answer.

    Attributes:
        id: Its name, unique in the benchmark.
        question: What the model is asked.
        choices: The answers to choose from; empty where the answer is written freely.
        answer: Index of the right choice; None where the answer is written freely.
        accepted: The answers that count as right; of a choice, only that one.
        group: The group that it is counted in; empty if there is none.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    accepted: tuple[str, ...]
    group: str = ""


def read_items(file: Path, item_format: ItemFormat, name: str = "") -> tuple[Item, ...]:
    """Read a benchmark of our own.

    Args:
        file: A .jsonl file.
        item_format: What its lines are.
        name: What to call the file in messages; its path when left out.

    Returns:
        The items, in the order of the file.

    Raises:
        DataError: With each problem of the file, by line: text that is not JSON, unknown keys, ids that occur twice,
            items without an answer, answers that are not among the choices, and choices that are equal.
    """
    name = name or str(file)
    items: list[Item] = []
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, raw in read_file(file):
        place = f"{name}:{number}"
        try:
            item = _item(decode(raw), item_format)
        except (RowError, _ItemError) as error:
            value = error.value if isinstance(error, _ItemError) else ""
            message = str(error) if isinstance(error, _ItemError) else f"{error}."
            problems.append(Problem(place, _shown(value), message, _REMEDIES[item_format], "benchmark-item"))
            continue
        if item.id in lines:
            message = f"is the id of line {lines[item.id]} too."
            problems.append(Problem(place, item.id, message, "Give every item an id of its own.", "benchmark-item"))
        lines.setdefault(item.id, number)
        items.append(item)
    if problems:
        raise DataError(list(_first(problems, name)))
    if not items:
        raise DataError.single(name, "", "holds no items.", _REMEDIES[item_format], code="benchmark-item")
    return tuple(items)


def in_turn(items: Iterable[Item]) -> tuple[Item, ...]:
    """Items with those of each group in turn, so that the first of them are of all groups.

    Args:
        items: The items; those of a group keep their order.
    """
    by_group: dict[str, list[Item]] = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    return tuple(item for turn in zip_longest(*by_group.values()) for item in turn if item is not None)


def write_items(items: Iterable[Item], file: Path) -> None:
    """Write items so that `load_items` reads them again.

    Args:
        items: The items.
        file: The file to write.
    """
    lines = (json.dumps(asdict(item), ensure_ascii=False, sort_keys=True) for item in items)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load_items(file: Path) -> tuple[Item, ...]:
    """Read what `write_items` wrote.

    Args:
        file: The file.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    lists = ("choices", "accepted")
    return tuple(Item(**{**row, **{key: tuple(row[key]) for key in lists}}) for row in rows)


class _ItemError(Exception):
    """Why a line is no item, with the value that is wrong."""

    def __init__(self, value: object, message: str) -> None:
        super().__init__(message)
        self.value = value


def _item(row: Mapping[str, Any], item_format: ItemFormat) -> Item:
    """The item in a line.

    Raises:
        _ItemError: It is none.
    """
    keys = _KEYS[item_format]
    if unknown := sorted(set(row) - set(keys)):
        raise _ItemError(", ".join(unknown), f"is no key of {item_format}, which has {', '.join(keys)}.")
    identity = row.get("id")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    name, question = _text(identity, "id"), _text(row.get("question"), "question")
    group = row.get("group") or ""
    if not isinstance(group, str) or "." in group:
        raise _ItemError(group, "is no name of a group: metrics are written as task/group.metric.")
    if row.get("answer") is None:
        raise _ItemError(name, "has no answer.")
    if item_format == "multiple_choice":
        choices = _choices(row.get("choices"))
        answer = _index(row["answer"], choices)
        return Item(name, question, choices, answer, (choices[answer],), group)
    accepted = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if not accepted:
        raise _ItemError(name, "has no answer.")
    return Item(name, question, (), None, tuple(_text(text, "answer") for text in accepted), group)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _ItemError(value, f"is no text, as {key} has to be." if value is not None else f"has no {key}.")
    if not value.strip():
        raise _ItemError(value, f"is an empty {key}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _ItemError(ascii(value), f"is a {key} that is not UTF-8.") from error
    return value


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise _ItemError(value, "is no list of two choices or more.")
    choices = tuple(_text(choice, "choice") for choice in value)
    for number, choice in enumerate(choices):
        if choice.strip() in (earlier.strip() for earlier in choices[:number]):
            raise _ItemError(choice, "is a choice twice, so the right answer is not known.")
    return choices


def _index(value: Any, choices: tuple[str, ...]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise _ItemError(value, f"is no index of one of the {len(choices)} choices: the first is 0.")
    return value


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text[:_SHOWN]


def _first(problems: list[Problem], name: str) -> Iterator[Problem]:
    """The first problems, and how many there are beside them."""
    yield from problems[:_MOST_PROBLEMS]
    if (more := len(problems) - _MOST_PROBLEMS) > 0:
        yield Problem(name, "", f"has {more} more problems.", "Repair the first ones.", "benchmark-item")

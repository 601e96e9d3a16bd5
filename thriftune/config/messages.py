"""Pydantic's errors in the words of the YAML file: field, value, remedy."""

import copy
import datetime
import difflib
import re
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from thriftune.errors import Problem
from thriftune.redaction import redacted

_LONGEST_VALUE = 80
# What YAML 1.1 makes of words without quotes, by the type of the result; bool comes first because it is an int too.
_YAML_READS: dict[type, str] = {
    bool: "yes, no, on, off, true and false as truth values",
    int: "it as a number, and what begins with 0 (octal) or has colons (base 60) as a different number",
    float: "it as a number",
    datetime.date: "it as a date",
    type(None): "null, ~ and an empty value as nothing",
}
# Keys of earlier versions, and what to write instead.
_REPLACED = {
    "lora.four_bit": "Write method: qlora for a base model in 4 bits, and method: lora for one in 16 bits.",
}
_MEANT = re.compile(r"Did you mean '(\w+)'\?")


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every error of a failed validation as a problem.

    Args:
        error: What pydantic raised.
        model: The class that was validated, to list the keys that exist.

    Returns:
        One problem per field, in the order of the file's keys; also one for a field that allows several types.
    """
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        names = _field_names(detail, model)
        field = ".".join(names) or "the file"
        problems.setdefault(field, _problem(field, names, detail, model))
    return [problem for field, problem in problems.items() if not _is_in_parts(field, problems)]


def _is_in_parts(field: str, problems: Collection[str]) -> bool:
    """Whether items of a list are wrong themselves: that it is then too short says nothing new."""
    return any(other.startswith(f"{field}.") for other in problems)


def intended_fields(problems: list[Problem]) -> set[str]:
    """The fields that misspelt keys were meant for; these only seem to have their default."""
    return {
        ".".join([*problem.field.split(".")[:-1], match.group(1)])
        for problem in problems
        if (match := _MEANT.fullmatch(problem.remedy))
    }


def is_named(field: str, named: Collection[str]) -> bool:
    """Whether a field, or a part of its value, is among fields with problems.

    Args:
        field: The field.
        named: The fields with problems.
    """
    return field in named or _is_in_parts(field, named)


def without_errors(data: Any, error: ValidationError) -> Any:
    """A copy of the input without the keys that were wrong, so that the remaining ones can be checked too."""
    pruned = copy.deepcopy(data)
    for detail in error.errors(include_url=False):
        if detail["type"] != "missing":
            _remove(pruned, list(detail["loc"]))
    return pruned


def _problem(field: str, names: list[str], detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    parent = _model_at(model, names[:-1])
    if detail["type"] == "extra_forbidden" and parent:
        if field in _REPLACED:
            return Problem(field, _shown(detail["input"]), "is no longer a key.", _REPLACED[field])
        known = list(parent.model_fields)
        close = difflib.get_close_matches(names[-1], known, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"The keys here are {', '.join(known)}."
        return Problem(field, _shown(detail["input"]), "is not a key.", remedy)
    if detail["type"] == "missing":
        return Problem(field, "", "is missing.", f"Add it: {_description(model, names)}")
    if detail["type"] == "model_type":
        return Problem(field, _shown(detail["input"]), "is no mapping of keys to values.", _description(model, names))
    remedy = f"{_as_yaml(names[-1], detail)}{_description(model, names)}" if names else _description(model, names)
    message = detail["msg"][0].lower() + detail["msg"][1:].replace("a valid tuple", "a list") + "."
    return Problem(field, _shown(detail["input"]), message, remedy)


def _as_yaml(name: str, detail: ErrorDetails) -> str:
    """How YAML misread a value, and how to write it instead; empty if that is not the problem."""
    value = detail["input"]
    if detail["type"] == "string_type":
        written = f": {name}: '...'" if name == detail["loc"][-1] else ""  # not for an item of a list
        reads = next((reads for kind, reads in _YAML_READS.items() if isinstance(value, kind)), "")
        return f"YAML reads {reads}; put it in quotes to keep it as text{written}. " if reads else ""
    if detail["type"] == "tuple_type" and isinstance(value, str):
        return f"Write {name}: [{redacted(value)}]. "
    if detail["type"] == "int_parsing" and isinstance(value, str) and (number := _whole_number(value)) is not None:
        return f"YAML reads it as text; write {name}: {number}. "
    return ""


def _whole_number(text: str) -> int | None:
    """The whole number that a text means in another notation, such as 1e6, 0o17 or 0x10."""
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        number = float(text.replace(",", "_"))
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _field_names(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """The path of keys, without the names of union branches that pydantic adds after the field."""
    names: list[str] = []
    current: type[BaseModel] | None = model
    for part in detail["loc"]:
        if current is None and not isinstance(part, int):
            break
        names.append(str(part))
        current = _model_at(model, names)
    return names


def _model_at(model: type[BaseModel], names: list[str]) -> type[BaseModel] | None:
    """The section class that a path of keys leads to, or None when it leads to a plain value."""
    current: type[BaseModel] | None = model
    for name in names:
        if name.isdigit():
            continue  # an item of a list
        if current is None or name not in current.model_fields:
            return None
        annotation = current.model_fields[name].annotation
        options = [annotation, *get_args(annotation)]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return current


def _description(model: type[BaseModel], names: list[str]) -> str:
    while names and names[-1].isdigit():  # an item of a list
        names = names[:-1]
    parent = _model_at(model, names[:-1])
    if not names or parent is None or names[-1] not in parent.model_fields:
        return "docs/configuration.md lists the keys."
    section = _model_at(model, names)
    text = parent.model_fields[names[-1]].description or (section.__doc__ if section else None) or ""
    return " ".join(text.split())


def _shown(value: object) -> str:
    text = redacted(repr(value))  # before it is cut: half a secret does not look like one
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _remove(data: Any, path: list[Any]) -> None:
    """Remove a key from nested dictionaries; an error inside a plain value or list removes the key of that value."""
    holder, held = None, None
    for key in path:
        if isinstance(data, dict) and key in data:
            holder, held = data, key
        elif not (isinstance(data, list | tuple) and isinstance(key, int) and key < len(data)):
            break
        data = data[key]
    if holder is not None:
        del holder[held]

"""The size of the text that an expression of a chat template would write: `'x' * 3000000000` must not be tried."""

import re
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any

from thriftune.limits import TEXT_CHARACTERS, size_of

_MOST_DECIMALS = 100
_MOST_BITS = 1 << 16  # of a whole number: multiplying and dividing longer numbers takes seconds
_OBJECT_CHARACTERS = 50  # the memory that any text takes, however short
# The width and the precision in a format of %.
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?")


class OverBudgetError(Exception):
    """A template would exceed a limit; the message continues after "the model's chat template"."""


def require_size(size: int) -> None:
    """Refuse to make a text that is too large.

    Args:
        size: Its number of characters.

    Raises:
        OverBudgetError: It is too large.
    """
    if size > TEXT_CHARACTERS:
        raise OverBudgetError(f"writes more than {TEXT_CHARACTERS:,} characters")


def written(value: Any) -> int:
    """Least number of characters that a value is written with; not counted beyond the limit.

    Args:
        value: Any value of a template.
    """
    return len(value) if isinstance(value, str) else size_of(value, TEXT_CHARACTERS)


def of_operator(operator: str, left: Any, right: Any) -> int:
    """Number of characters that `left operator right` makes.

    Args:
        operator: The operator as written in the template.
        left: The value on its left.
        right: The value on its right.
    """
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        return len(left) + len(right)
    if operator == "%" and isinstance(left, str):
        return _of_percent(left, right)
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 0)
        return 0 if bits <= _MOST_BITS else TEXT_CHARACTERS + 1
    if operator == "*":
        times, repeated = (left, right) if isinstance(left, int) else (right, left)
        return written(repeated) * max(times, 0) if isinstance(times, int) else 0
    return 0


def of_result(value: Any) -> int:
    """Number of characters that a text, or a list of texts, keeps in memory; 0 for a value that holds nothing new.

    Args:
        value: The value of an expression.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, list | tuple):
        return 0
    return len(value) + sum(_OBJECT_CHARACTERS + len(part) for part in value if isinstance(part, str))


def of_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Number of characters that a method of a text or a number adds to those it is given; 0 for other functions.

    Args:
        function: The function that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    method = getattr(function, "__wrapped__", function)  # as Jinja's sandbox wraps format
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if name in _METHODS and (owner is int or isinstance(owner, str | bytes | int)):
        return int(_METHODS[name](owner, *args, **kwargs))
    return 0


def _of_percent(text: str, values: Any) -> int:
    numbers = [number for found in _PERCENT.findall(text) for number in found if number]
    return len(text) + _widths(numbers) + text.count("%") * written(values)


def _of_format(text: str, *values: Any, **named: Any) -> int:
    specifications = [part[2] for part in string.Formatter().parse(text) if part[2]]
    numbers = [number for found in specifications for number in re.findall(r"\d+|\{", found)]
    return len(text) + _widths(numbers) + text.count("{") * written([values, named])


def _widths(numbers: list[str]) -> int:
    """The sum of the widths in a format; a width given by a value may be anything."""
    return sum(int(number) if number.isdecimal() and len(number) < 10 else TEXT_CHARACTERS + 1 for number in numbers)


def _of_replacing(text: Any, old: Any, new: Any, *_count: Any, **_named: Any) -> int:
    return len(text) + int(text.count(old)) * len(new)


def _of_joining(values: Any, between: Any = "", *_attribute: Any, **_named: Any) -> int:
    return written(values) + len(values) * len(between) if isinstance(values, Collection) else 0


def _of_indenting(text: Any, width: Any = 4, *_options: Any, **_named: Any) -> int:
    return len(text) + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width))


def _of_json(value: Any, _ascii: Any = False, indent: Any = None, *_options: Any, **named: Any) -> int:
    indent = named.get("indent", indent)
    return written(value) * (1 + (indent if isinstance(indent, int) else len(indent or "")))


def _of_sum(_values: Any, _attribute: Any = None, start: Any = 0) -> int:
    return 0 if isinstance(start, int | float) else TEXT_CHARACTERS + 1  # lists are copied again for each item


def _of_number(_value: Any, number: Any = 0, *_options: Any, **named: Any) -> int:
    return sum(abs(given) for given in (number, *named.values()) if isinstance(given, int))


def _of_wrapping(text: Any, *options: Any, **named: Any) -> int:
    return len(text) * (1 + sum(len(given) for given in (*options, *named.values()) if isinstance(given, str)))


def _of_replacing_text(text: Any, old: Any, new: Any, *_count: Any, **_named: Any) -> int:
    return _of_replacing(str(text), str(old), str(new))


def _of_rounding(_value: Any, precision: Any = 0, *_method: Any, **_named: Any) -> int:
    return 0 if abs(precision) < _MOST_DECIMALS else TEXT_CHARACTERS + 1  # it computes a power of ten


def _of_reading_number(text: Any, *_options: Any, **_named: Any) -> int:
    is_text = isinstance(text, str | bytes)
    return TEXT_CHARACTERS + 1 if is_text and len(text) > _MOST_BITS // 8 else 0  # at most eight bits per letter


def _of_translating(text: Any, table: Any) -> int:
    return len(text) * written(table)


def _of_tabs(text: Any, tabsize: Any = 8) -> int:
    return len(text) * int(abs(tabsize))


def _of_value(value: Any, *_options: Any, **_named: Any) -> int:
    return written(value)


# Filters whose result is larger than their input, or that write out their input.
OF_FILTERS: dict[str, Callable[..., int]] = {
    "batch": _of_number,
    "center": _of_number,
    "format": lambda text, *values, **named: _of_percent(str(text), values or named),
    "indent": _of_indenting,
    "int": _of_reading_number,
    "join": _of_joining,
    "pprint": _of_value,
    "replace": _of_replacing_text,
    "round": _of_rounding,
    "slice": _of_number,
    "string": _of_value,
    "sum": _of_sum,
    "tojson": _of_json,
    "urlize": _of_wrapping,
    "wordwrap": _of_wrapping,
    "xmlattr": _of_value,
}

# Methods of texts, bytes and whole numbers that do the same.
_METHODS: dict[str, Callable[..., int]] = {
    "center": _of_number,
    "expandtabs": _of_tabs,
    "format": _of_format,
    "format_map": _of_format,
    "from_bytes": lambda _kind, number, *options, **named: _of_reading_number(number, *options, **named),
    "join": lambda between, values: _of_joining(values, between),
    "ljust": _of_number,
    "replace": _of_replacing,
    "rjust": _of_number,
    "to_bytes": _of_number,
    "translate": _of_translating,
    "zfill": _of_number,
}

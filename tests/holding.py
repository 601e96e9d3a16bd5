"""A rule over many things is one test, which names every thing that breaks it."""

import functools
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_Thing = TypeVar("_Thing")
_Rule = Callable[..., None]


def holds_for_every(
    argument: str, things: Sequence[_Thing], name: Callable[[_Thing], str] = str
) -> Callable[[_Rule], _Rule]:
    """Make one test of a rule that looks at one thing.

    Args:
        argument: The argument of the rule that is the thing; its other arguments stay fixtures.
        things: What the rule must hold for, of which there is at least one.
        name: What a thing is called in the list of those that break the rule.
    """

    def decorate(rule: _Rule) -> _Rule:
        signature = inspect.signature(rule)
        fixtures = [parameter for parameter in signature.parameters.values() if parameter.name != argument]
        assert len(fixtures) == len(signature.parameters) - 1, f"{rule.__name__} has no argument {argument}"

        @functools.wraps(rule)
        def test(**given: object) -> None:
            assert things, "there is nothing to look at"
            broken = [_broken(name(thing), functools.partial(rule, **given, **{argument: thing})) for thing in things]
            told = [text for text in broken if text]
            assert told == [], f"{len(told)} of {len(things)} break it:\n" + "\n".join(told)

        test.__signature__ = signature.replace(parameters=fixtures)  # what pytest reads the fixtures from
        return test

    return decorate


def _broken(name: str, rule: Callable[[], None]) -> str:
    """How a thing breaks the rule; empty if it does not."""
    try:
        rule()
    except Exception as error:  # noqa: BLE001 - whatever would have failed the test of this thing alone
        own = Path(inspect.getfile(rule.func)).name
        line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == own]
        return f"{name} ({own}:{line[0]}): {type(error).__name__}: {error}"
    return ""

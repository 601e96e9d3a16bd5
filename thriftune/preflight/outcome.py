"""The outcome of a step of the preflight: a value, or the findings that say why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from thriftune.codes import UNREACHABLE
from thriftune.errors import Problem, TransientError, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A value or findings.

    Attributes:
        value: The value; None if the step failed, or returns nothing.
        findings: Why the step failed; empty if it did not.
    """

    value: T | None = None
    findings: tuple[Problem, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.findings)


def attempt(action: Callable[[], T], field: str, value: object) -> Outcome[T]:
    """Call a function, and turn this package's errors into findings.

    Args:
        action: The function.
        field: Key of the run file to name in a finding that something did not answer.
        value: Value of that key.

    Returns:
        The value or the findings. Other errors are not caught.
    """
    try:
        return Outcome(action())
    except TransientError as error:
        return Outcome(findings=(unreachable(error, field, value),))
    except UserError as error:
        return Outcome(findings=error.problems)


def unreachable(error: TransientError, field: str, value: object) -> Problem:
    """A finding that the hub or a store did not answer. Where the error names the field, it knows the value better."""
    message = str(error)
    if (known := message.removeprefix(f"{field} = ")) != message:
        value, _, message = known.partition(": ")
    return Problem.coded(UNREACHABLE, field, value, message, "Try again in a minute.")

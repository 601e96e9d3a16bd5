"""What a step of the preflight comes to: a value, or the findings that say why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from thriftune.codes import UNREACHABLE
from thriftune.errors import Problem, TransientError, UserError
from thriftune.redaction import redacted

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A value or findings.

    Attributes:
        value: None where it failed, or gives nothing.
        findings: Why it failed; empty where it did not.
    """

    value: T | None = None
    findings: tuple[Problem, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.findings)


def attempt(action: Callable[[], T], field: str, value: object) -> Outcome[T]:
    """Do something that raises this package's errors, and take their problems for findings.

    Args:
        action: What to do.
        field: What an error that may pass is about.
        value: What stands there.

    Returns:
        What the action gave, or what it raised. Errors of ours are raised on.
    """
    try:
        return Outcome(action())
    except TransientError as error:
        return Outcome(findings=(unreachable(error, field, value),))
    except UserError as error:
        return Outcome(findings=error.problems)


def unreachable(error: TransientError, field: str, value: object) -> Problem:
    """What did not answer, as a finding."""
    message = str(error).removeprefix(redacted(f"{field} = {value}: "))
    return Problem.coded(UNREACHABLE, field, value, message, "Try again in a minute.")

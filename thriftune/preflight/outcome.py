"""What a step of the preflight comes to: a value, or the findings that say why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from thriftune.errors import TransientError, UserError
from thriftune.preflight.findings import UNREACHABLE, Finding, finding, of_problem
from thriftune.redaction import redacted
from thriftune.remote import failure_of

T = TypeVar("T")
Coded = str | Callable[[UserError], str]


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A value or findings.

    Attributes:
        value: None where it failed, or gives nothing.
        findings: Why it failed; empty where it did not.
    """

    value: T | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.findings)


def attempt(action: Callable[[], T], code: Coded, field: str, value: object) -> Outcome[T]:
    """Do something that raises this package's errors, and take those for findings.

    Args:
        action: What to do.
        code: The code of what it raises, or a function that tells it.
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
        of_error = code if isinstance(code, str) else code(error)
        return Outcome(findings=tuple(of_problem(of_error, problem) for problem in error.problems))


def unreachable(error: TransientError, field: str, value: object) -> Finding:
    """What did not answer, as a finding."""
    message = str(error).removeprefix(redacted(f"{field} = {value}: "))
    return finding(UNREACHABLE, field, value, message, "Try again in a minute.")


def hub_code(what: Literal["model", "data"]) -> Callable[[UserError], str]:
    """Tells the code of an error from what the hub, the store or the disk raised before it.

    Args:
        what: The kind of thing that was asked for.
    """

    def code(error: UserError) -> str:
        from huggingface_hub import errors as hub_errors

        cause = error.__cause__
        if error.__suppress_context__ and cause is None:  # the one error whose cause would show the token
            return "hub-token-refused"
        if isinstance(cause, hub_errors.GatedRepoError):
            return f"{what}-gated"
        if isinstance(cause, hub_errors.RevisionNotFoundError):
            return f"{what}-revision-not-found"
        is_unknown = isinstance(cause, hub_errors.RepositoryNotFoundError | hub_errors.HFValidationError)
        if isinstance(cause, hub_errors.HfHubHTTPError) and not is_unknown and "token" in error.problems[0].message:
            return "hub-token-refused"
        # As a missing file fsspec says what a server refused, too.
        is_missing = isinstance(cause, FileNotFoundError) and failure_of(cause) == "missing"
        return f"{what}-not-found" if cause is None or is_missing or is_unknown else f"{what}-unreadable"

    return code

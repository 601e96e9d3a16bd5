"""Errors that say whose fault it is: the user's (fix the input), the surroundings' (try again), or ours."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Self

from thriftune.codes import CODES, Severity
from thriftune.redaction import redacted


@dataclass(frozen=True)
class Problem:
    """One problem with what a person gave us. Secrets are removed from its texts when it is made.

    Attributes:
        field: The key in the YAML file, for example `training.micro_batch`.
        value: The value of that key, as text.
        message: Why the value cannot work, or what it means.
        remedy: What to write or do instead.
        code: Key of `thriftune.codes.CODES`. An error gives its own code to its problems that have none.
    """

    field: str
    value: str
    message: str
    remedy: str
    code: str = ""

    def __post_init__(self) -> None:
        if self.code and self.code not in CODES:
            raise KeyError(self.code)
        for name in ("field", "value", "message", "remedy"):
            object.__setattr__(self, name, redacted(getattr(self, name)))

    @classmethod
    def coded(cls, code: str, field: str, value: object, message: str, remedy: str = "") -> Self:
        """A problem with a code, and a value of any type."""
        return cls(field, str(value), message, remedy, code)

    @property
    def severity(self) -> Severity:
        """Its code's severity. error: it cannot work. warning: it may not do what was meant. note: worth knowing."""
        return CODES[self.code][0] if self.code else "error"

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        return f"{self.field}{value}: {self.message} {self.remedy}"


class ThriftuneError(Exception):
    """Base of every error that this package raises on purpose. Secrets are removed from its text when it is made."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(value) if isinstance(value, str) else value for value in args))


class UserError(ThriftuneError):
    """The input cannot work; trying again changes nothing. Carries every problem that was found.

    The only constructor argument is the list of problems, so that the error survives pickling between processes.

    Attributes:
        headline: First line of its text.
        code: Code for its problems that have none of their own.
        missing: Code for something that does not exist. Where this or one of the next two is empty, `code` is used.
        gated: Code for a gated repository.
        no_revision: Code for a commit, tag or branch that does not exist.
    """

    headline = "The input cannot be used"
    code: ClassVar[str] = "input-unusable"
    missing: ClassVar[str] = ""
    gated: ClassVar[str] = ""
    no_revision: ClassVar[str] = ""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Give the error's code to the problems that have none.

        Args:
            problems: What is wrong, one or more.
        """
        self.problems = tuple(problem if problem.code else replace(problem, code=self.code) for problem in problems)
        super().__init__(self.problems)

    @classmethod
    def single(cls, field: str, value: object, message: str, remedy: str, *, code: str = "") -> Self:
        """An error with one problem, which has the given code or else the class's."""
        return cls([Problem(field, str(value), message, remedy, code)])

    @classmethod
    def of(cls, code: str, problems: Sequence[Problem]) -> Self:
        """An error whose problems get a code where they have none of their own."""
        return cls([problem if problem.code else replace(problem, code=code) for problem in problems])

    def advising(self, advice: str) -> Self:
        """The same error, with advice added after the remedy of its last problem."""
        *others, last = self.problems
        return type(self)([*others, replace(last, remedy=f"{last.remedy} {advice}")])

    def __str__(self) -> str:
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines = [f"{self.headline} ({count} {noun}):", *(f"  - {problem}" for problem in self.problems)]
        return "\n".join(lines)


class ConfigError(UserError):
    """The YAML file asks for something that cannot be done."""

    headline = "The configuration cannot be used"
    code = "config-invalid"


class DataError(UserError):
    """The rows cannot be trained on."""

    headline = "The data cannot be used"
    code, missing = "data-unreadable", "data-not-found"
    gated, no_revision = "data-gated", "data-revision-not-found"


class ModelSourceError(UserError):
    """The base model cannot be fetched, or is not what it should be."""

    headline = "The base model cannot be used"
    code, missing = "model-unreadable", "model-not-found"
    gated, no_revision = "model-gated", "model-revision-not-found"


class AdapterError(UserError):
    """A directory holds no adapter, or its adapter does not fit the model."""

    headline = "The adapter cannot be used"
    code, missing = "adapter-unreadable", "adapter-not-found"


class PublishError(UserError):
    """The result cannot be pushed where the configuration says."""

    headline = "The result cannot be published"
    code = "publish-no-write-access"


class GateError(UserError):
    """The result does not pass its gate, and the run file asks for an error then. Everything is kept."""

    headline = "The result does not pass its gate"
    code = "gate-failed"


class ExportError(UserError):
    """A result cannot be exported to a format, or its tokenizer cannot be written there."""

    headline = "The model cannot be exported"
    code = "export-not-covered"


class ParityError(UserError):
    """An export is not what was trained. What was trained is kept."""

    headline = "An export is not what was trained"
    code = "export-differs"


class ResultParityError(ParityError):
    """A saved or merged result is not what was trained. It is kept, and not published."""

    headline = "The result is not what was trained"
    code = "result-differs"


class ResultError(UserError):
    """A result of a run is not in the store, or the index of results cannot be used."""

    headline = "A result is not there"
    code = "result-missing"


class PodError(UserError):
    """A pod is not what its task was planned for: the cluster is set up wrongly."""

    headline = "This pod is not what was planned"
    code = "pod-cut-down"


class DivergedError(UserError):
    """The loss is no longer a number: there is nothing worth saving."""

    headline = "The training diverged"
    code = "training-diverged"


class BudgetError(UserError):
    """Going on would cost more than the run may cost. Progress is saved."""

    headline = "The budget is spent"
    code = "budget-spent"


class StoppedEarlyError(UserError):
    """A trial was told to end, as others of its sweep were better at the same point. Progress is saved."""

    headline = "The trial was stopped early"
    code = "trial-stopped"


class TransientError(ThriftuneError):
    """Something outside failed that may work in a minute (network, hub, blob store). Tasks make it retryable."""


class StartAgainError(TransientError):
    """The training changed its own settings (micro batch, a batch left out) and must start again from a checkpoint."""


class PreemptedError(TransientError):
    """The node is being taken away. Progress is saved, and another attempt resumes from it."""


class EndedAtOnceError(PreemptedError):
    """A process was told to end where it had nothing to save: by its node, or by the agent that starts it again."""


def to_json(error: ThriftuneError) -> str:
    """An error as text that another process can read; unlike a pickle, reading it runs no code."""
    if isinstance(error, UserError):
        return json.dumps({"kind": type(error).__name__, "problems": [asdict(p) for p in error.problems]})
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def from_json(text: str) -> ThriftuneError:
    """The error that `to_json` wrote down.

    Args:
        text: What it returned.

    Returns:
        An error of the same class, or of the base of its kind where this process has not loaded the class.
    """
    content = json.loads(text)
    classes = {found.__name__: found for found in _below(ThriftuneError)}
    if "problems" in content:
        cls = classes.get(content["kind"], UserError)
        return cls([Problem(**problem) for problem in content["problems"]])
    return classes.get(content["kind"], TransientError)(content["text"])


def _below(base: type[ThriftuneError]) -> Iterator[type[ThriftuneError]]:
    for found in base.__subclasses__():
        yield found
        yield from _below(found)


def in_a_line(error: BaseException, longest: int = 200) -> str:
    """An error of a library in one short line: its class and the start of its text.

    Args:
        error: The error.
        longest: Most characters of its text.
    """
    text = " ".join(redacted(str(error)).split())
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class RedactedError(ThriftuneError):
    """An error of a library, without the secrets that its text held."""


def without_secrets(error: BaseException) -> BaseException:
    """An error that is safe to show; printing it prints its causes, too.

    Args:
        error: The error.

    Returns:
        The error itself, if neither its text nor that of any cause holds a secret; else the same chain, with redacted
        errors of the same name in place of those that do.
    """
    links = list(chain_of(error))
    if all(redacted(str(link)) == str(link) for link in links):
        return error
    cause: BaseException | None = None
    for link in reversed(links):
        shown, text = link, redacted(str(link))
        if text != str(link):
            # Keeps the name of the class: readers know it, and `thriftune.training.guards.faults` decides by it.
            shown = type(type(link).__name__, (RedactedError,), {})(text).with_traceback(link.__traceback__)
            for note in getattr(link, "__notes__", ()):
                shown.add_note(redacted(note))
        shown.__cause__ = cause
        shown.__context__ = None
        cause = shown
    return shown


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, as Python would show them, from the last to the first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)

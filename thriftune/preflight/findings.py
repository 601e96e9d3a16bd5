"""The result of a preflight: the problems it collected, facts worth showing, and the error if a run cannot start."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from thriftune.codes import UNREACHABLE, Severity
from thriftune.data.statistics import Bin
from thriftune.errors import Problem, TransientError, UserError

_RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class PreflightError(UserError):
    """The run cannot work as it is; no GPU was asked for."""

    headline = "The run cannot start"


@dataclass(frozen=True)
class Facts:
    """Facts about a run, besides its problems. Empty or None: not known.

    Attributes:
        model_version: Version of the base model (`thriftune.models.fetching.version`).
        tokenizer_version: Fingerprint of its tokenizer (`thriftune.models.tokenizer.fingerprint`).
        data_version: Version of the data (`thriftune.data.sources.versions`).
        license: Of the base model.
        parameters: Of the base model.
        rows_sampled: Rows read.
        rows_total: Rows of all sources; None if the sample is only a part and their number is not known.
        is_whole: Whether the sample is all of the data.
        examples: Examples in the sample.
        lengths: Tokens of each example, before any is cut; the last bar holds all longer ones.
        longest: Tokens of the longest example.
        max_length: data.max_length.
        too_long: Share of the examples that are longer.
        trained_share: Share of the tokens that carry loss.
        training_rows: Token rows to train on; estimated if the sample is only a part of the data.
        total_steps: Optimizer steps; estimated in the same case.
        warmup_steps: Steps in which the learning rate rises.
        plan: The plan in one line.
        upload_seconds: Seconds that a node needs to upload a checkpoint.
        benchmarks_version: Version of each benchmark by its name, as JSON
            (`thriftune.inference.benchmarks.preparing.versions`).
    """

    model_version: str = ""
    tokenizer_version: str = ""
    data_version: str = ""
    license: str = ""
    parameters: int | None = None
    rows_sampled: int = 0
    rows_total: int | None = None
    is_whole: bool = False
    examples: int = 0
    lengths: tuple[Bin, ...] = ()
    longest: int = 0
    max_length: int = 0
    too_long: float | None = None
    trained_share: float | None = None
    training_rows: int | None = None
    total_steps: int | None = None
    warmup_steps: int | None = None
    plan: str = ""
    upload_seconds: float | None = None
    benchmarks_version: str = ""


@dataclass(frozen=True)
class Preflight:
    """The result of a preflight.

    Attributes:
        run: Name of the run.
        findings: Errors first, then warnings, then notes.
        facts: Facts about the run.
    """

    run: str
    findings: tuple[Problem, ...] = ()
    facts: Facts = field(default_factory=Facts)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the run from starting."""
        return self.of("error")

    def of(self, severity: Severity) -> tuple[Problem, ...]:
        """The findings of one severity."""
        return tuple(found for found in self.findings if found.severity == severity)

    def require_ok(self) -> None:
        """Refuse a run that cannot work.

        Raises:
            TransientError: The only problems are that the hub or a store did not answer.
            PreflightError: With every error, each with its code at the end.
        """
        if not self.errors:
            return
        named = [replace(found, remedy=f"{found.remedy} [{found.code}]".strip()) for found in self.errors]
        if all(found.code == UNREACHABLE for found in self.errors):
            raise TransientError("; ".join(map(str, named)))
        raise PreflightError(named)

    def as_json(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return {
            "run": self.run,
            "ok": not self.errors,
            "counts": {severity: len(self.of(severity)) for severity in _RANKS},
            "findings": [{"code": f.code, "severity": f.severity, **asdict(f)} for f in self.findings],
            "facts": asdict(self.facts),
        }


def skipped(check: str, reason: str) -> Problem:
    """A note that a check could not be made."""
    return Problem.coded("check-skipped", check, "", f"not checked: {reason}.")


def in_order(findings: list[Problem]) -> tuple[Problem, ...]:
    """Errors first, and without duplicates."""
    first: dict[tuple[str, str, str], Problem] = {}
    for found in findings:
        first.setdefault((found.code, found.field, found.message), found)
    return tuple(sorted(first.values(), key=lambda found: _RANKS[found.severity]))

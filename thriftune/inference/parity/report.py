"""What parity found of an export: a table with what was measured beside what is allowed, and a page."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from thriftune import pages
from thriftune.inference.parity.allowed import Allowed
from thriftune.inference.parity.differences import Difference, What
from thriftune.inference.parity.llama_cpp import InLlamaCpp
from thriftune.models.next_tokens import Compared

FILE = "parity.json"


@dataclass(frozen=True)
class Measure:
    """A number, and its limit.

    Attributes:
        name: What is measured.
        value: It; None where it could not be measured.
        allowed: Its limit.
        is_least: Whether the limit is the least allowed value, and not the most.
    """

    name: str
    value: float | None
    allowed: float
    is_least: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether it is within its limit, or could not be measured; what is no number is beyond every limit."""
        if self.value is None:
            return True
        return self.value >= self.allowed if self.is_least else self.value <= self.allowed

    @property
    def text(self) -> tuple[str, str]:
        """The number and its limit, in words."""
        shown = "not measured" if self.value is None else _number(self.value)
        return shown, f"{'at least' if self.is_least else 'at most'} {_number(self.allowed)}"


@dataclass(frozen=True)
class Parity:
    """Whether an export is what was trained.

    Attributes:
        format: Its format, or the kind of what was compared: merged, served.
        differences: In what it is not; none if it passes.
        measures: Numbers with their limits.
        rows: Rows whose next tokens were compared.
        tokens: Tokens compared.
        prompts: Prompts compared token by token and answered.
        remarks: What else a person should know.
        llama_cpp: What llama.cpp made of it; None where it is not installed, or cannot read it.
    """

    format: str
    differences: list[Difference]
    measures: list[Measure] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    prompts: int = 0
    remarks: list[str] = field(default_factory=list)
    llama_cpp: InLlamaCpp | None = None

    @property
    def passes(self) -> bool:
        """Whether it is what was trained, as far as its format allows."""
        return not self.differences

    @property
    def sentence(self) -> str:
        """What came of it, in a sentence."""
        if self.passes:
            return f"{self.format} is what was trained, as far as its format allows."
        return f"{self.format} is not what was trained. {'; '.join(map(str, self.differences))}."


def measures_of(compared: Compared, limits: Allowed) -> list[Measure]:
    """What was measured of next tokens, with what is allowed.

    Args:
        compared: What was measured.
        limits: How far a model may be from the reference.
    """
    return [
        Measure("KL divergence of the next token, nats", compared.kl, limits.kl),
        Measure("likeliest next token agrees, share", compared.agreement, limits.agreement, is_least=True),
    ]


def beyond(measures: Sequence[Measure], by: str = "") -> Iterator[Difference]:
    """The measures of next tokens and answers that are beyond their limits, each as a difference.

    Args:
        measures: What was measured.
        by: What measured it, to begin the sentence; empty for ourselves.
    """
    for measure in measures:
        if not measure.is_kept:
            value, limit = measure.text
            what: What = "answers" if measure.name.startswith("answers") else "outputs"
            yield Difference(what, f"{by}{measure.name} is {value}, allowed is {limit}")


def table_of(found: Sequence[Parity]) -> str:
    """Exports on one screen, as plain text.

    Args:
        found: What was found of each.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Exports, compared with what was trained", title_justify="left")
    for column in ("export", "", "measured", "allowed"):
        table.add_column(column)
    for one in found:
        for place, row in enumerate(rows_of(one)):
            table.add_row(Text(one.format if place == 0 else ""), *map(Text, row))
        table.add_section()
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(table)
    for one in found:
        console.print(Text(one.sentence), soft_wrap=True)
        for remark in one.remarks:
            console.print(Text(f"{one.format}: {remark}"), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows_of(one: Parity) -> Iterator[tuple[str, str, str]]:
    """What was measured of an export, each as its name, the value and the limit.

    Args:
        one: What was found of it.
    """
    for measure in one.measures:
        yield measure.name, *measure.text
    yield "differences", ", ".join(dict.fromkeys(d.what for d in one.differences)) or "none", "none"


def page_of(name: str, found: Sequence[Parity]) -> str:
    """Exports as one HTML page.

    Args:
        name: Name of the model or run.
        found: What was found of each export.
    """
    rows = [(one, list(rows_of(one))) for one in found]
    return pages.render("inference/parity/parity.html.jinja", {}, name=name, found=rows)


def _number(value: float) -> str:
    return f"{value:.3g}"

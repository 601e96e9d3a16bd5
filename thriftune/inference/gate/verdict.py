"""Whether a result may be published: each rule of a gate, decided by the interval of what was measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from thriftune.config.gate_rules import metrics_of, unknown_metrics
from thriftune.config.publishing import GateConfig
from thriftune.errors import ConfigError, Problem
from thriftune.inference.gate import statistics, wording
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.flips import Flip

Outcome = Literal["passes", "fails", "undecided"]

# Examples of a rule that fails; the others are in the comparison.
_EXAMPLES = 5


@dataclass(frozen=True)
class Ruling:
    """What came of one rule.

    Attributes:
        rule: Which kind of rule it is.
        metric: The metric that it is about.
        required: Least improvement, or largest loss that is accepted.
        outcome: What came of it.
        reason: Why, in words and numbers.
        items: Number of items that it was decided on.
        needed: Number of items that would decide it, where it is undecided; None if no number is known to.
        examples: Of a rule that fails, items that got worse, or of which it did not get better.
    """

    rule: Literal["improves", "keeps"]
    metric: str
    required: float
    outcome: Outcome
    reason: str
    items: int
    needed: int | None = None
    examples: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a gate decides.

    Attributes:
        outcome: passes: every rule does. fails: one does. undecided: none fails, but there are too few items for one.
        rulings: What came of each rule, in the order of the run file.
    """

    outcome: Outcome
    rulings: tuple[Ruling, ...]

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a verdict from values of JSON.

        Args:
            content: What `as_json` gave.
        """
        return TypeAdapter(cls).validate_python(content)

    def as_json(self) -> dict[str, Any]:
        """The verdict as values for JSON."""
        content: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return content

    def publishes(self, gate: GateConfig) -> bool:
        """Whether the result is published under a gate.

        Args:
            gate: The gate.
        """
        return self.outcome == "passes" or (self.outcome == "undecided" and gate.on_undecided == "publish")

    @property
    def deciding(self) -> tuple[Ruling, ...]:
        """The rules that made it what it is."""
        return tuple(ruling for ruling in self.rulings if ruling.outcome == self.outcome)

    @property
    def holding(self) -> int:
        """Number of rules that hold."""
        return sum(ruling.outcome == "passes" for ruling in self.rulings)

    @property
    def sentence(self) -> str:
        """The verdict in one line, with the reason of each rule that made it so."""
        if self.outcome == "passes":
            count = len(self.rulings)
            return f"The gate passes: {f'all {count} rules hold' if count > 1 else self.rulings[0].reason}"
        title = "The gate fails" if self.outcome == "fails" else "The gate is undecided"
        return f"{title}: {' '.join(ruling.reason for ruling in self.deciding)}"


def decide(comparison: Comparison, gate: GateConfig) -> Verdict:
    """Decide whether a result passes a gate. All of its rules have to hold.

    No correction is made for the number of rules: a result that should fail one of them passes all of them no more
    often than it passes that one.

    Args:
        comparison: Base and result on the same items, at the confidence of the gate.
        gate: The gate.

    Raises:
        ConfigError: A metric was not measured, or is no finite number; the message names it.
    """
    if not math.isclose(comparison.confidence, gate.confidence):
        raise ValueError(f"The intervals have confidence {comparison.confidence}, the gate asks for {gate.confidence}.")
    measured: dict[str, list[str]] = {}
    for one in comparison.metrics:
        measured.setdefault(one.metric.rpartition(".")[0], []).append(one.name)
    problems = [*unknown_metrics(gate, measured), *_not_finite(comparison, gate)]
    if problems:
        raise ConfigError(problems)
    found = {one.metric: one for one in comparison.metrics}
    improves = [_improves(found[rule.metric], rule.by, comparison) for rule in gate.improves]
    keeps = [_keeps(found[rule.metric], rule.within, comparison) for rule in gate.keeps]
    rulings = (*improves, *keeps)
    outcomes = {ruling.outcome for ruling in rulings}
    worst: Outcome = "fails" if "fails" in outcomes else "undecided" if "undecided" in outcomes else "passes"
    return Verdict(worst, rulings)


def _not_finite(comparison: Comparison, gate: GateConfig) -> Iterator[Problem]:
    """A metric of which nothing can be decided."""
    found = {one.metric: one for one in comparison.metrics}
    for field, metric in metrics_of(gate):
        one = found.get(metric)
        estimates = (one.base, one.tuned, one.change) if one else ()
        numbers = [number for e in estimates for number in (e.value, e.low, e.high)] + ([one.floor] if one else [])
        if not all(map(math.isfinite, numbers)):
            yield Problem(field, metric, "is no finite number.", "Measure base and result again.")


def _improves(one: Compared, by: float, comparison: Comparison) -> Ruling:
    """Better by at least so much, and by more than the noise: the whole interval lies there, or none of it does."""
    seen, least = one.improvement, max(by, one.floor)
    asked = f"{one.metric} must get better" + (f" by {wording.size(by, one)}" if by else "")
    outcome: Outcome = "undecided"
    if _is_enough(one, comparison):
        if seen.low >= by and seen.low > one.floor:
            outcome = "passes"
        elif seen.high < by or seen.high <= one.floor or one.is_unchanged:
            outcome = "fails"
    return _ruling("improves", one, by, outcome, asked, seen.value - least, comparison)


def _keeps(one: Compared, within: float, comparison: Comparison) -> Ruling:
    """Worse by no more than so much, or than the noise: the whole interval lies there, or none of it does."""
    seen, most = one.improvement, max(within, one.floor)
    outcome: Outcome = "undecided"
    if one.higher_is_better is None:
        asked = f"{one.metric} must change by no more than {wording.size(within, one)}"
        is_inside, is_outside = seen.low >= -most and seen.high <= most, seen.low > most or seen.high < -most
        distance = most - abs(seen.value)
    else:
        asked = f"{one.metric} must not get worse" + (
            f" by more than {wording.size(within, one)}" if within else " at all"
        )
        is_inside, is_outside, distance = seen.low >= -most, seen.high < -most, seen.value + most
    if _is_enough(one, comparison):
        outcome = "passes" if is_inside else "fails" if is_outside else "undecided"
    return _ruling("keeps", one, within, outcome, asked, distance, comparison)


def _is_enough(one: Compared, comparison: Comparison) -> bool:
    """Whether there are items enough to decide anything: of five, all may change by chance."""
    return one.items >= statistics.fewest_items(comparison.confidence)


def _said(one: Compared, comparison: Comparison) -> str:
    """What was measured, in words."""
    interval = f"interval at {comparison.confidence * 100:.4g}%: {wording.range_of(one)}"
    if one.is_unchanged:
        said = f"not one of {one.items:,} items changed" + (f" ({interval})" if one.change.high else "")
    else:
        values = f"base {wording.value(one.base.value, one)}, result {wording.value(one.tuned.value, one)}"
        said = f"{wording.movement(one)} ({values}; {interval}; {one.items:,} items)"
    floor = f"; two measurements of the base differ by up to {wording.size(one.floor, one)}" if one.floor else ""
    return f"{said}{floor}."


def _ruling(
    rule: Literal["improves", "keeps"],
    one: Compared,
    required: float,
    outcome: Outcome,
    asked: str,
    distance: float,
    comparison: Comparison,
) -> Ruling:
    """A ruling with what it lacks: the items that it takes, or the examples of its failure."""
    reason = f"{asked}, {'and' if outcome == 'passes' else 'but'} {_said(one, comparison)}"
    if outcome == "undecided":
        needed = statistics.items_needed(one.deviation, distance, comparison.confidence)
        if one.is_unchanged:
            needed = statistics.items_to_exclude(distance, comparison.confidence)
        if needed is not None and needed <= one.items:  # close to the line: the interval is not as even as assumed
            needed = one.items + statistics.fewest_items(comparison.confidence)
        told = f"it would take about {needed:,} items" if needed else "at the limit itself, no number is enough"
        reason += f" Too few items to tell: {told}."
        return Ruling(rule, one.metric, required, outcome, reason, one.items, needed)
    examples = _examples(one, comparison) if outcome == "fails" else ()
    names = ", ".join(flip.question.item for flip in examples)
    more = f" Got worse: {names}." if examples else ""
    return Ruling(rule, one.metric, required, outcome, reason + more, one.items, None, examples)


def _examples(one: Compared, comparison: Comparison) -> tuple[Flip, ...]:
    """Items that got worse, of a metric or, of a group's, of its benchmark's main one."""
    main = {task.name: f"{task.name}.{task.main}" for task in comparison.tasks}
    found = (flip for flip in comparison.flips if flip.metric == main.get(one.task, one.metric))
    worse = [flip for flip in found if flip.became == "worse" and one.group in ("", flip.question.group)]
    return tuple(worse[:_EXAMPLES])

"""Base and tuned side by side: every metric of every benchmark, its groups, and how both answer."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from thriftune.config.publishing import ANSWERS
from thriftune.inference.benchmarks.results import TaskFacts
from thriftune.inference.gate.flips import Flip
from thriftune.inference.gate.statistics import Estimate, Kind


@dataclass(frozen=True)
class Compared:
    """One metric of both models.

    Attributes:
        metric: Its name, as people write it: task.metric, task/group.metric, or answers.stops.
        kind: mean over items; per_token: sum over tokens; relative: the change of a mean as a share of it.
        items: Number of items that it was measured on.
        base: The value of the base, with its interval.
        tuned: The value of the result.
        change: The result's less the base's; of a relative metric, as a share of the base's.
        deviation: Standard deviation of the change of one item.
        higher_is_better: Whether a rise is better; None where neither is.
        better: Number of items that got better; where neither is, that rose.
        worse: Number of items that got worse, or fell.
        p_value: McNemar's exact test, where each item is 0 or 1; else None.
        floor: Largest difference between two measurements of the base; 0 if it was measured once.
    """

    metric: str
    kind: Kind
    items: int
    base: Estimate
    tuned: Estimate
    change: Estimate
    deviation: float
    higher_is_better: bool | None
    better: int
    worse: int
    p_value: float | None
    floor: float

    @property
    def is_unchanged(self) -> bool:
        """Whether it is the same of every item."""
        return self.better == self.worse == 0

    @property
    def improvement(self) -> Estimate:
        """The change with the sign that makes a rise better."""
        if self.higher_is_better is not False:
            return self.change
        return Estimate(-self.change.value, -self.change.high, -self.change.low)

    @property
    def task(self) -> str:
        """The benchmark that it belongs to."""
        return self.metric.rpartition(".")[0].partition("/")[0]

    @property
    def group(self) -> str:
        """The group of the benchmark; empty for all of it."""
        return self.metric.rpartition(".")[0].partition("/")[2]

    @property
    def name(self) -> str:
        """The metric without its benchmark."""
        return self.metric.rpartition(".")[2]


@dataclass(frozen=True)
class Comparison:
    """Base and tuned on the same items.

    Attributes:
        confidence: Confidence of every interval.
        seed: Seed of the resamples.
        repeats: How often the base was measured.
        tasks: The benchmarks.
        metrics: Every metric: of each benchmark, of its groups, and of how the models answer.
        flips: Items that became right or wrong, or of which the answer became of another kind; some of each.
    """

    confidence: float
    seed: int
    repeats: int
    tasks: tuple[TaskFacts, ...]
    metrics: tuple[Compared, ...]
    flips: tuple[Flip, ...]

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a comparison from values of JSON.

        Args:
            content: What `as_json` gave.
        """
        return TypeAdapter(cls).validate_python(content)

    def as_json(self) -> dict[str, Any]:
        """The comparison as values for JSON."""
        content: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return content

    @property
    def main(self) -> tuple[Compared, ...]:
        """Of each benchmark, the metric to look at first."""
        names = [f"{task.name}.{task.main}" for task in self.tasks]
        return tuple(found for found in self.metrics if found.metric in names)

    @property
    def groups(self) -> tuple[Compared, ...]:
        """Of each group of a benchmark, the metric to look at first; the one that improved most comes first."""
        main = {task.name: task.main for task in self.tasks}
        found = (one for one in self.metrics if one.group and one.name == main.get(one.task))
        return tuple(sorted(found, key=lambda one: -one.improvement.value))

    def of(self, metric: str) -> Compared | None:
        """A metric by its name; None if it was not measured.

        Args:
            metric: As task.metric, task/group.metric, or answers.stops.
        """
        return next((found for found in self.metrics if found.metric == metric), None)

    @property
    def behaviours(self) -> tuple[Compared, ...]:
        """How the models answer."""
        return tuple(found for found in self.metrics if found.task == ANSWERS)

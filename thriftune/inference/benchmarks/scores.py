"""The scores of models on benchmarks: one number for each metric of each benchmark and group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from thriftune import pages
from thriftune.inference.benchmarks.results import LOSS, ItemResult, Results
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.verdict import Verdict


@dataclass(frozen=True)
class BenchmarkScores:
    """What a run that only measures found.

    Attributes:
        name: Name of the run.
        scores: By model (`base`, and each adapter by its name), by metric as people write it: the score.
        comparisons: By adapter, how it compares with the base.
        verdicts: By adapter, what the gate decides; empty without a gate.
    """

    name: str
    scores: dict[str, dict[str, float]]
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def as_json(self) -> str:
        """All of it as JSON text."""
        return TypeAdapter(type(self)).dump_json(self, indent=2).decode() + "\n"


def scores_of(results: Results) -> dict[str, float]:
    """The scores of a model: by task.metric, and by task/group.metric where there are groups.

    Args:
        results: Its results on all items.
    """
    return {f"{place}.{metric}": score for place, metric, score, _ in _scores(results)}


def page_of_scores(name: str, results: Results) -> str:
    """The scores of one model as an HTML page.

    Args:
        name: Name of the run.
        results: Its results on all items.
    """
    rows = [(place, metric, f"{score:.4f}", f"{count:,}") for place, metric, score, count in _scores(results)]
    items = len(results.items)
    return pages.render("inference/benchmarks/scores.html.jinja", {}, name=name, rows=rows, items=items)


def _scores(results: Results) -> Iterator[tuple[str, str, float, int]]:
    """Benchmark with its group, metric, score and number of items."""
    for task in results.tasks:
        own = [item for item in results.items if item.task == task.name]
        groups = sorted({item.group for item in own if item.group})
        parts: Mapping[str, Sequence[ItemResult]] = {
            task.name: own,
            **{f"{task.name}/{group}": [item for item in own if item.group == group] for group in groups},
        }
        for metric in task.metrics:
            for place, items in parts.items():
                counted = [item for item in items if metric in item.scores]
                weight = sum(item.tokens for item in counted) if metric == LOSS else len(counted)
                if weight:
                    yield place, metric, sum(item.scores[metric] for item in counted) / weight, len(counted)

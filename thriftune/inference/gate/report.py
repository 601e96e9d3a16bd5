"""The page of a comparison: several results beside one base, or one."""

from collections.abc import Iterator, Mapping

from thriftune import pages
from thriftune.inference.gate import wording
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.verdict import Verdict
from thriftune.inference.gate.view import Direction, direction_of, view_of
from thriftune.training.charts import HEIGHT, WIDTH

_MISSING: tuple[tuple[str, str], Direction] = (("", ""), "unclear")


def page_of_benchmarks(
    name: str,
    comparisons: Mapping[str, Comparison],
    verdicts: Mapping[str, Verdict] | None = None,
) -> str:
    """Benchmarks as one HTML page.

    Args:
        name: Name of the run.
        comparisons: By name of the result, how it compares with the base.
        verdicts: By name of the result, what a gate decides.
    """
    decided = verdicts or {}
    return pages.render(
        "inference/gate/report.html.jinja",
        {},
        name=name,
        views={model: view_of(found, decided.get(model)) for model, found in comparisons.items()},
        overview=list(_overview(comparisons)),
        width=WIDTH,
        height=HEIGHT,
    )


def rows_of(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The benchmarks, each as its main metric, the base's value and the result's, with their intervals.

    Args:
        comparison: Base and result.
    """
    for one in comparison.main:
        yield one.metric, wording.estimate(one.base, one), wording.estimate(one.tuned, one)


def _overview(
    comparisons: Mapping[str, Comparison],
) -> Iterator[tuple[str, str, list[tuple[tuple[str, str], Direction]]]]:
    """Every main metric and every number of how the models answer: of the base, and what each result changed."""
    by_metric: dict[str, list[Compared | None]] = {}
    for number, comparison in enumerate(comparisons.values()):
        for one in (*comparison.main, *comparison.behaviours):
            by_metric.setdefault(one.metric, [None] * len(comparisons))[number] = one
    for metric, found in by_metric.items():
        first = next(one for one in found if one)
        changes = [(wording.change_parts(one), direction_of(one)) if one else _MISSING for one in found]
        yield metric, wording.value(first.base.value, first), changes

"""Placeholder."""

from collections.abc import Mapping

from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.verdict import Verdict


def page_of_benchmarks(
    name: str, comparisons: Mapping[str, Comparison], verdicts: Mapping[str, Verdict] | None = None
) -> str:
    """Placeholder."""
    raise NotImplementedError

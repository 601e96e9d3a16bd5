"""Placeholder."""

from collections.abc import Sequence

from thriftune.inference.benchmarks.results import Results
from thriftune.inference.gate.comparison import Comparison
from thriftune.training.held_out import EvalReport


def compare(
    base: Sequence[Results],
    tuned: Results,
    confidence: float = 0.95,
    seed: int = 0,
    samples: tuple[EvalReport, EvalReport] | None = None,
) -> Comparison:
    """Placeholder."""
    raise NotImplementedError

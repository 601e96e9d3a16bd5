"""Placeholder."""

from dataclasses import dataclass

from thriftune.config.publishing import GateConfig
from thriftune.inference.gate.comparison import Comparison


@dataclass(frozen=True)
class Verdict:
    """Placeholder."""

    answer: str


def decide(comparison: Comparison, gate: GateConfig) -> Verdict:
    """Placeholder."""
    raise NotImplementedError

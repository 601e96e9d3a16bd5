"""Placeholder."""

from dataclasses import dataclass

from thriftune.config.publishing import GateConfig
from thriftune.inference.gate.comparison import Comparison


@dataclass(frozen=True)
class Verdict:
    """Placeholder."""

    outcome: str

    @property
    def sentence(self) -> str:
        """Placeholder."""
        raise NotImplementedError


def decide(comparison: Comparison, gate: GateConfig) -> Verdict:
    """Placeholder."""
    raise NotImplementedError

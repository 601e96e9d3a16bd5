"""Placeholder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Placeholder."""

    confidence: float

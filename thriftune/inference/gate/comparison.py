"""Placeholder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Placeholder."""

    confidence: float

    def as_json(self) -> dict[str, object]:
        """Placeholder."""
        raise NotImplementedError

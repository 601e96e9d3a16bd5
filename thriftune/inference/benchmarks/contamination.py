"""Placeholder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Contamination:
    """Placeholder."""

    share: float = 0.0


def contamination(prepared_dir: Path, dataset_dir: Path, tokenizer_dir: Path) -> dict[str, Contamination]:
    """Placeholder."""
    raise NotImplementedError

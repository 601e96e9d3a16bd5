"""Placeholder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thriftune.config import DataFormat
from thriftune.inference.benchmarks.results import Results
from thriftune.models.loading import Placement


@dataclass(frozen=True)
class Shard:
    """Placeholder."""

    task: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Settings:
    """Placeholder."""

    batch: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    style: DataFormat | None = None
    trust_remote_code: bool = False
    max_rows: int = 1000


def measure(
    prepared: Path,
    shard: Shard,
    model_dir: Path,
    placement: Placement,
    adapters: Mapping[str, Path],
    settings: Settings,
    dataset_dir: Path | None = None,
) -> dict[str, Results]:
    """Placeholder."""
    raise NotImplementedError

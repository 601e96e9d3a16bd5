"""Placeholder."""

from pathlib import Path
from typing import Literal

from thriftune.config.benchmarks import BenchmarksConfig, BenchmarkTask

Kind = Literal["items", "held_out", "harness"]


def prepare(
    section: BenchmarksConfig, directory: Path, token: str | None = None, *, trust_remote_code: bool = False
) -> None:
    """Placeholder."""
    raise NotImplementedError


def versions(section: BenchmarksConfig, token: str | None = None, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Placeholder."""
    raise NotImplementedError


def kind_of(task: BenchmarkTask) -> Kind:
    """Placeholder."""
    return "held_out" if task.name == "held_out" else "items"

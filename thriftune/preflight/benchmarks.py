"""Placeholder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thriftune.config import RunConfig
from thriftune.errors import Problem
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.sampling import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckedBenchmarks:
    """Placeholder."""

    version: str = ""
    findings: tuple[Problem, ...] = ()


def check(
    config: RunConfig,
    base: BaseModel,
    tokenizer: "PreTrainedTokenizerBase | None",
    sample: Sample | None,
    token: str | None,
) -> CheckedBenchmarks:
    """Placeholder."""
    raise NotImplementedError

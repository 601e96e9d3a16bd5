"""Rules over several fields about benchmarks and the gate."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config import gate_rules
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of benchmarks and gate that the file alone shows."""
    yield from gate_rules.check(config)

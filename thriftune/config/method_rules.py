"""Rules over several fields of the sections about methods."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config.choices import METHODS
from thriftune.config.methods import PartialConfig
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the method's section that the file alone shows."""
    section = METHODS[config.method].section
    if section and isinstance(getattr(config, f"{section}_or_default"), PartialConfig):
        yield from _partial(config)


def _partial(config: "RunConfig") -> Iterator[Problem]:
    partial = config.partial_or_default
    if not partial.train and not partial.add_layers:
        yield Problem(
            "partial.train",
            "",
            "names nothing, so nothing would train.",
            "Name what trains, such as [last_layers: 2, head], or set partial.add_layers.",
        )

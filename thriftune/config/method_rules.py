"""Rules over several fields of the sections about methods."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config.choices import METHODS, STRATEGIES, strategies_of
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the method's section that the file alone shows."""
    if METHODS[config.method].section == "partial":
        yield from _partial(config)
    if METHODS[config.method].quantizes:
        yield from _in_four_bits(config)


def _partial(config: "RunConfig") -> Iterator[Problem]:
    partial = config.partial_or_default
    if not partial.train and not partial.add_layers:
        yield Problem(
            "partial.train",
            "",
            "names nothing, so nothing would train.",
            "Name what trains, such as [last_layers: 2, head], or set partial.add_layers.",
        )


def _in_four_bits(config: "RunConfig") -> Iterator[Problem]:
    variant = config.lora_or_default.variant
    reasons = [STRATEGIES[name].refuses_in_four_bits.get(variant) for name in strategies_of(config)]
    if all(reasons):
        able = [name for name, facts in STRATEGIES.items() if variant not in facts.refuses_in_four_bits]
        message = f"cannot be trained with method {config.method} and strategy {config.strategy}: {reasons[0]}."
        yield Problem("lora.variant", variant, message, f"Use strategy {', '.join(able)}, or method lora.")

"""What a gate can decide with so many items, before anything is measured."""

from collections.abc import Iterator, Mapping

from thriftune.config.gate_rules import SHARES, metrics_of
from thriftune.config.publishing import GateConfig
from thriftune.errors import Problem
from thriftune.inference.gate import statistics


def too_few_items(gate: GateConfig, items: Mapping[str, int]) -> Iterator[Problem]:
    """The rules of a gate that stay undecided however well a result does, unless it does the same as the base.

    Args:
        gate: The gate.
        items: By benchmark (`general-mini`) or group of one (`general-mini/arithmetic`), its number of items; those
            that are not known are left out.
    """
    allowed = {f"publish.gate.keeps.{number}.metric": rule.within for number, rule in enumerate(gate.keeps)}
    for field, metric in metrics_of(gate):
        of, _, name = metric.rpartition(".")
        count = items.get(of)
        if count is None:
            continue
        needed: int | None = statistics.fewest_items(gate.confidence)
        if field in allowed and name in SHARES:
            needed = statistics.items_to_exclude(allowed[field], gate.confidence)
        if needed is not None and count < needed:
            at = f"{gate.confidence * 100:.4g}%"
            message = (
                f"has {count:,} items; at {at}, fewer than {needed:,} leave the gate undecided even if none changes."
            )
            remedy = "Use more items, or accept more (`within`), or set on_undecided: publish."
            yield Problem.coded("gate-too-few-items", field, metric, message, remedy)

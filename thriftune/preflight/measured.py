"""What the benchmarks of a run measure, and whether its gate can be decided by that."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thriftune.config import gate_rules
from thriftune.config.benchmarks import HELD_OUT, BenchmarkTask, ItemFormat
from thriftune.config.publishing import ANSWERS, GateConfig
from thriftune.data.items import Item
from thriftune.errors import Problem
from thriftune.inference.benchmarks import harness_metrics
from thriftune.inference.benchmarks.own_items import METRICS
from thriftune.inference.benchmarks.results import LOSS
from thriftune.inference.gate.outlook import too_few_items


@dataclass(frozen=True)
class Measured:
    """What a benchmark measures.

    Attributes:
        metrics: By its name, and by each of its groups as `name/group`, the metrics; none where they are not known.
        items: In the same way, numbers of items; those that are not known are left out.
        writes: Whether it has the model write answers, or may.
    """

    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    writes: bool = False


def unknown(task: BenchmarkTask) -> Measured:
    """A benchmark of which nothing could be found out.

    Args:
        task: The benchmark.
    """
    return Measured({task.name: ()}, writes=True)


def of_items(task: BenchmarkTask, items: Sequence[Item], item_format: ItemFormat) -> Measured:
    """A benchmark in a format of ours.

    Args:
        task: The benchmark.
        items: Those of its items that are measured.
        item_format: Their format.
    """
    groups = Counter(f"{task.name}/{item.group}" for item in items if item.group)
    counts = {task.name: len(items), **groups}
    return Measured(dict.fromkeys(counts, METRICS[item_format]), counts, item_format == "exact_answer")


def of_held_out(task: BenchmarkTask, rows: int | None) -> Measured:
    """The held-out rows of a run.

    Args:
        task: The benchmark.
        rows: Number of those that are measured; None if it is not known.
    """
    return Measured({task.name: (LOSS,)}, {} if rows is None else {task.name: rows})


def of_harness(task: BenchmarkTask, configs: Sequence[Mapping[str, Any]]) -> Measured:
    """A task of lm-evaluation-harness.

    Args:
        task: The benchmark.
        configs: Configurations of the tasks that it stands for. Their data may not have been read: how many items they
            have is known only from the limit, and then at most.
    """
    each = {str(config["task"]): harness_metrics.metrics_of(config) for config in configs}
    everything = tuple(dict.fromkeys(name for names in each.values() for name in names)) if all(each.values()) else ()
    groups = {f"{task.name}/{name}": names for name, names in each.items()} if len(each) > 1 else {}
    counts = dict.fromkeys(groups, task.limit) | {task.name: task.limit * len(each)} if task.limit else {}
    return Measured({task.name: everything, **groups}, counts, any(map(harness_metrics.writes, configs)))


def check(gate: GateConfig, benchmarks: Iterable[Measured]) -> Iterator[Problem]:
    """The rules of a gate that ask for what is not measured, or that so few items cannot decide.

    Args:
        gate: The gate.
        benchmarks: What the benchmarks of its run measure.
    """
    metrics: dict[str, Sequence[str]] = {}
    items: dict[str, int] = {}
    writes = False
    for each in benchmarks:
        metrics |= each.metrics
        items |= each.items
        writes |= each.writes
    metrics[ANSWERS] = gate_rules.of_answers(writes=writes, held_out=HELD_OUT in metrics)
    for found in gate_rules.unknown_metrics(gate, metrics):
        yield Problem.coded("config-invalid", found.field, found.value, found.message, found.remedy)
    yield from too_few_items(gate, items)

"""A plan for people and programs: tables for the terminal, a page for Flyte's deck, and JSON."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from thriftune import pages
from thriftune.methods import METHODS
from thriftune.planned_node import EvaluationNode
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.time import report as times
from thriftune.planning.verdict import sentence
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import Alternative, TrainingPlan

if TYPE_CHECKING:
    from rich.table import Table

SHARED_MEMORY = "shared memory"
OTHER = "other"

_COLUMNS = 110
_LEAST_SHOWN_GIB = 0.05  # less than that would be shown as 0.0

Fact = tuple[str, str, str]
"""One fact of a plan: its name, its value, and a note that may be empty."""


@dataclass(frozen=True)
class Load:
    """Memory that a GPU, a worker process or a host holds at the moment when it needs the most.

    Attributes:
        name: What holds the memory.
        items: GiB by item.
        limit_gib: Memory it has, in GiB.
    """

    name: str
    items: dict[str, float]
    limit_gib: float

    @property
    def gib(self) -> float:
        """Sum of all items, in GiB."""
        return sum(self.items.values())

    @property
    def share(self) -> float:
        """Share of the limit that is used, from 0 to 1; above 1 if it does not fit."""
        return self.gib / self.limit_gib


def plan_table(plan: TrainingPlan, name: str) -> str:
    """The plan on one screen, as plain text of at most 110 columns.

    Args:
        plan: The plan.
        name: Name of the run.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    devices = device_loads(plan)
    memory = Table.grid(padding=(0, 2))
    memory.add_row(
        _load_table(_fullest(devices), plan.memory.phase, among=len(devices)),
        _load_table(host_load(plan), plan.memory.host_phase),
    )
    # No colours in a log, whatever the environment says.
    console = Console(file=io.StringIO(), width=_COLUMNS, force_terminal=False)
    console.print(Text(_printable(f"{name}: {headline(plan)}")), _fact_table(plan), memory, sep="\n")
    if len(devices) > 1:
        console.print(Text("GiB of each: " + ", ".join(f"{load.name} {gib(load.gib)}" for load in devices)))
    if plan.alternatives:
        console.print(_alternative_table(plan))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def plan_html(plan: TrainingPlan, name: str) -> str:
    """The plan as one HTML page without external resources; names are escaped.

    Args:
        plan: The plan.
        name: Name of the run.
    """
    devices = device_loads(plan)
    return pages.render(
        "planning/report.html.jinja",
        {"gib": gib, "percent": percent},
        name=name,
        plan=plan,
        headline=headline(plan),
        facts=facts(plan),
        kind=_kind(plan),
        devices=devices,
        fullest=_fullest(devices),
        host=host_load(plan),
        alternatives=alternatives(plan),
    )


def plan_json(plan: TrainingPlan, name: str) -> str:
    """The plan as JSON: all its fields, and under "derived" what follows from them. Equal plans give equal text.

    Unlike host_gib, the derived values for the host (free, share) include /dev/shm.

    Args:
        plan: The plan.
        name: Name of the run.
    """
    memory, host = plan.memory, host_load(plan)
    derived = {
        "device": plan.device,
        "ranks": plan.batch.world_size,
        "devices": plan.nodes * plan.devices_per_node,
        "device_gib": memory.device_gib,
        "allocated_gib": memory.allocated_gib,
        "host_gib": memory.host_gib,
        "disk_gib": memory.disk_gib,
        "device_free_gib": plan.device_limit_gib - memory.device_gib,
        "host_free_gib": plan.host_limit_gib - host.gib,
        "device_share": memory.device_gib / plan.device_limit_gib,
        "host_share": host.share,
        "price_per_device_hour": _price_per_device(plan),
        "trained_share": plan.trained_parameters / plan.parameters,
    }
    return json.dumps({"name": name, **asdict(plan), "derived": derived}, indent=2, allow_nan=False) + "\n"


def headline(plan: TrainingPlan) -> str:
    """The method and the machines, in one line."""
    method = METHODS[plan.method].facts.title
    return f"{method} on {machines(plan)} ({_devices(plan, plan.nodes * plan.devices_per_node)})"


def machines(plan: TrainingPlan) -> str:
    """The number and type of the nodes, such as 2 x g4dn.metal."""
    return _place(plan.nodes, plan.instance)


def facts(plan: TrainingPlan) -> Iterator[Fact]:
    """Everything a plan says, except its memory and the alternatives."""
    count, request, batch = plan.nodes * plan.devices_per_node, plan.request, plan.batch
    per_node = f", {plan.devices_per_node} per node" if plan.nodes > 1 else ""
    yield "machines", machines(plan), _devices(plan, count) + per_node
    if plan.price_per_hour:
        each = f"{_price_per_device(plan):,.3f} {plan.currency} per {_kind(plan)}-hour"
        day = f", prices of {plan.prices_as_of}" if plan.prices_as_of else ""
        yield "price", f"{plan.price_per_hour:,.2f} {plan.currency} per hour", each + day
    yield from times.facts(plan.time, plan.price_per_hour, plan.currency)
    if plan.is_spot:
        yield from times.spot_facts(plan.spot, plan.price_per_hour, plan.currency)
    yield "method", METHODS[plan.method].facts.title, STRATEGIES[plan.strategy].describe(plan)
    yield "precision", plan.precision, ""
    parts = f"micro batch {batch.micro_batch} x accumulation {batch.accumulation}"
    yield "global batch", _counted(batch.global_batch, "row"), f"{parts} x {_counted(batch.world_size, 'rank')}"
    share = percent(plan.trained_parameters / plan.parameters)
    is_whole = plan.trained_parameters == plan.parameters
    trained = "all trained" if is_whole else f"{parameters(plan.trained_parameters)} trained ({share})"
    yield "parameters", parameters(plan.parameters), trained
    if plan.instance != THIS_MACHINE:
        gpus = _counted(request.gpus, "GPU") if request.gpus else "no GPU"
        asked = f"{_counted(request.cpus, 'CPU')}, {request.memory_gib} GiB"
        rest = f"{gpus}, disk {request.disk_gib} GiB, /dev/shm of {request.shared_memory_gib} GiB"
        yield "each pod asks for", asked, rest
    if plan.evaluation and plan.evaluation.is_asked:
        node, price = plan.evaluation, f"{plan.evaluation.price_per_hour:,.2f} {plan.currency} per hour"
        yield "result measured on", _place(1, node.instance), f"{_counted(node.devices, node.device)}, {price}"
    if plan.benchmarks and plan.benchmarks.instance != THIS_MACHINE:
        yield _benchmarks(plan.benchmarks, plan.currency)
    if (verdict := plan.memory.verdict) is not None:
        yield "memory", verdict.answer, sentence(verdict)
    items = ", ".join(f"{item} {gib(size)}" for item, size in plan.memory.disk.items())
    yield "disk", f"{gib(plan.memory.disk_gib)} GiB", f"of each node: {items}"


def _benchmarks(node: EvaluationNode, currency: str) -> Fact:
    at_once = f", at most {node.parallel} at a time" if node.parallel < node.pods else ""
    price = f"{_counted(node.devices, node.device)}, {node.price_per_hour:,.2f} {currency} per hour"
    return "benchmarks on", _place(1, node.instance), f"{price}; {_counted(node.pods, 'pod')}{at_once}"


def device_loads(plan: TrainingPlan) -> list[Load]:
    """Memory of each GPU of a node, or worker process on a CPU; one entry where all are the same, as under ZeRO."""
    devices, kind = plan.memory.devices, _kind(plan)
    if all(items == devices[0] for items in devices):
        article = "each" if plan.nodes * plan.devices_per_node > 1 else "the"
        return [Load(f"{article} {kind}", _folded(devices)[0], plan.device_limit_gib)]
    loads = enumerate(_folded(devices))
    return [Load(f"{kind} {index}", items, plan.device_limit_gib) for index, items in loads]


def host_load(plan: TrainingPlan) -> Load:
    """Memory of a host, which /dev/shm is a part of."""
    items = {**plan.memory.host, SHARED_MEMORY: plan.memory.shared_memory_gib}
    return Load("each host" if plan.nodes > 1 else "the host", _folded([items])[0], plan.host_limit_gib)


def alternatives(plan: TrainingPlan) -> list[list[str]]:
    """A table of the plan and its alternatives: a row of headers, then the plan itself, then the alternatives."""
    chosen = Alternative(
        plan.instance, plan.nodes, plan.devices_per_node, plan.strategy, STRATEGIES[plan.strategy].short(plan),
        plan.micro_batch, plan.memory.device_gib, plan.device_limit_gib, plan.price_per_hour, plan.time, plan.spot,
    )  # fmt: skip
    kind = _kind(plan)
    has_times = any(other.time for other in (chosen, *plan.alternatives))
    has_settings = any(other.settings for other in (chosen, *plan.alternatives))
    rows = [
        [
            "machines",
            f"{kind}s each",
            *(["settings"] if has_settings else []),
            "micro batch",
            f"GiB of a {kind}",
            "per hour",
            *(times.COLUMNS if has_times else []),
        ]
    ]
    return rows + [
        [
            _place(other.nodes, other.instance),
            str(other.devices_per_node),
            *([_settings(other)] if has_settings else []),
            str(other.micro_batch),
            f"{gib(other.device_gib)} of {gib(other.device_limit_gib)}",
            f"{other.price_per_hour:,.2f} {plan.currency}",
            *(times.cells(other.time, other.price_per_hour, other.spot) if has_times else []),
        ]
        for other in (chosen, *plan.alternatives)
    ]


def _settings(other: Alternative) -> str:
    """The settings in a word: those without a name are the run file's, and a strategy may have none."""
    facts = STRATEGIES[other.strategy].facts
    return other.settings or ("the file's" if facts.section else facts.title)


def gib(size: float) -> str:
    """GiB with one decimal; never 0.0 for something above zero."""
    return "<0.1" if 0 < size < _LEAST_SHOWN_GIB else f"{size:.1f}"


def percent(share: float) -> str:
    """A share as text: never 0 % for something above zero, nor 100 % for less than all.

    Args:
        share: From 0 to 1.
    """
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def parameters(count: int) -> str:
    """A number of parameters as text, such as 6.74 B or 134.52 M."""
    return f"{count / 1e9:.2f} B" if count >= 999_995_000 else f"{count / 1e6:.2f} M"


def _folded(loads: list[dict[str, float]]) -> list[dict[str, float]]:
    """GiB by item; items that are too small to show on every device are summed into one, which comes last."""
    items = dict.fromkeys(item for load in loads for item in load)
    shown = [item for item in items if max(load.get(item, 0.0) for load in loads) >= _LEAST_SHOWN_GIB]
    rests = [sum(size for item, size in load.items() if item not in shown) for load in loads]
    folded = [{item: load.get(item, 0.0) for item in shown} for load in loads]
    return [{**load, OTHER: rest} for load, rest in zip(folded, rests, strict=True)] if any(rests) else folded


def _fullest(loads: list[Load]) -> Load:
    return max(loads, key=lambda load: load.gib)


def _fact_table(plan: TrainingPlan) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for fact in facts(plan):
        table.add_row(*(Text(_printable(text), overflow="fold") for text in fact))
    return table


def _load_table(load: Load, phase: str, among: int = 1) -> "Table":
    from rich.table import Table

    fullest = ", the fullest" if among > 1 else ""
    table = Table()
    table.add_column(f"{load.name}{fullest} ({phase})")
    table.add_column("GiB", justify="right")
    for item, size in load.items.items():
        table.add_row(item, gib(size))
    table.add_section()
    table.add_row("in all", gib(load.gib))
    table.add_row("limit", gib(load.limit_gib))
    table.add_row("used", percent(load.share))
    return table


def _alternative_table(plan: TrainingPlan) -> "Table":
    from rich.table import Table
    from rich.text import Text

    header, *rows = alternatives(plan)
    table = Table()
    for index, label in enumerate(header):
        table.add_column(label, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _kind(plan: TrainingPlan) -> str:
    return "GPU" if plan.hardware.is_gpu else "worker"


def _devices(plan: TrainingPlan, count: int) -> str:
    return f"{count} x {plan.device}" if plan.hardware.is_gpu else f"{_counted(count, 'worker')} on {plan.device}"


def _place(nodes: int, instance: str) -> str:
    return instance if instance == THIS_MACHINE else f"{nodes} x {instance}"


def _price_per_device(plan: TrainingPlan) -> float:
    return plan.price_per_hour / (plan.nodes * plan.devices_per_node)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _printable(text: str) -> str:  # a terminal would execute control characters
    return "".join(letter if letter.isprintable() else "?" for letter in text)

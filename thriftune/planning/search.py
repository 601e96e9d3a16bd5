"""Trying node types, node counts, ZeRO stages, offloads and micro batches until something fits."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from thriftune.batching import Batch
from thriftune.config import AUTO, RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.hardware import Precision, choose_precision
from thriftune.models import saving
from thriftune.models.architecture import Architecture
from thriftune.planning.memory import Machines, Pass, estimate, evaluation_gib
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.strategies.zero import layout as zero_layout
from thriftune.training_plan import Estimate

# No limit is planned to be filled to the brim: the estimates of overhead on GPUs are not measured here.
_FILLED = 0.95

# A larger micro batch than this makes a step no faster on the GPUs of the catalogue, and leaves less room.
_LARGEST_MICRO_BATCH = 16


@dataclass(frozen=True)
class Choice:
    """One way to run.

    Attributes:
        offer: The machine.
        nodes: How many.
        devices_per_node: GPUs of each, or worker processes on a CPU.
        zero_name: Name of the ZeRO configuration; empty for QLoRA.
        zero_config: The configuration; None for QLoRA.
        batch: The batch, with micro batch and accumulation.
        precision: Precision of the products.
    """

    offer: Offer
    nodes: int
    devices_per_node: int
    zero_name: str
    zero_config: dict[str, Any] | None
    batch: Batch
    precision: Precision

    @property
    def price_per_hour(self) -> float:
        """Of all nodes."""
        return self.nodes * self.offer.price_per_hour

    @property
    def share(self) -> float:
        """Share of a node that the pod takes: its GPUs out of all of them."""
        return self.devices_per_node / self.offer.gpus if self.offer.gpus else 1.0

    @property
    def host_limit_gib(self) -> float:
        """Host memory that the pod can have."""
        return self.offer.host_gib * self.share

    @property
    def device_limit_gib(self) -> float:
        """Memory of a GPU; of a worker process on a CPU, its part of the host's."""
        if self.offer.device.is_gpu:
            return self.offer.gpu_gib
        return self.offer.host_gib / self.devices_per_node

    @property
    def place(self) -> str:
        """The machines, as text."""
        return f"{self.nodes} x {self.offer.name}"


@dataclass(frozen=True)
class Fitting:
    """A choice that fits, and what it needs."""

    choice: Choice
    memory: Estimate


@dataclass(frozen=True)
class Refusal:
    """A choice that does not fit.

    Attributes:
        choice: What was tried; None for what was left out before anything could be tried.
        reason: Why not, as a clause.
        excess: How far from fitting: what it needs over what there is; infinite where that is no number.
    """

    place: str
    choice: Choice | None
    reason: str
    excess: float


def search(
    config: RunConfig,
    architecture: Architecture,
    offers: list[Offer],
    zero_options: dict[str, dict[str, Any]],
    wanted: int,
) -> tuple[list[Fitting], list[Refusal]]:
    """The cheapest ways to run that fit, one per kind and number of machines.

    Args:
        config: The run.
        architecture: Its model.
        offers: Machines to choose among.
        zero_options: ZeRO configurations by name, the fastest first; empty for QLoRA.
        wanted: How many to find.

    Returns:
        What fits, cheapest first; and why the others that were tried do not.
    """
    fitting: list[Fitting] = []
    refused: list[Refusal] = []
    places = [(offer, nodes) for offer in offers for nodes in _node_counts(config, offer)]
    # Of equal price, the fewer machines: they talk to each other less.
    for offer, nodes in sorted(places, key=lambda p: (p[0].price_per_hour * p[1], p[1], p[0].name)):
        found = _fit(config, architecture, offer, nodes, zero_options)
        if isinstance(found, Fitting):
            fitting.append(found)
            if len(fitting) == wanted:
                break
        else:
            refused += found
    return fitting, refused


def zero_choices(named: str | dict[str, Any], files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ZeRO configurations that `zero.config` leaves to choose among, by name; one without a name is inline."""
    if isinstance(named, dict):
        return {"": named}
    return dict(files) if named == AUTO else {named: files[named]}


def _node_counts(config: RunConfig, offer: Offer) -> tuple[int, ...]:
    if config.hardware.nodes is not None:
        return (config.hardware.nodes,)
    return NODE_COUNTS if config.method == "full" and offer.name != THIS_MACHINE else (1,)


def _fit(
    config: RunConfig, architecture: Architecture, offer: Offer, nodes: int, zero_options: dict[str, dict[str, Any]]
) -> Fitting | list[Refusal]:
    """The fastest way to run on some machines that fits, or why none does."""
    devices = config.hardware.devices_per_node or offer.gpus or 1
    ranks = nodes * devices if config.method == "full" else 1
    if offer.host_gib <= 0:
        return [Refusal(f"{nodes} x {offer.name}", None, "the node leaves no host memory for a pod", math.inf)]
    micro_batches = list(_micro_batches(config, ranks))
    if not micro_batches:
        per_pass = ranks * (config.training.micro_batch or 1)
        reason = f"training.global_batch {config.training.global_batch} is not a multiple of {per_pass}"
        return [Refusal(f"{nodes} x {offer.name}", None, reason, math.inf)]
    precision = choose_precision(config.training.precision, offer.device)
    refused = []
    for name, zero_config in zero_options.items() or (("", None),):
        for micro in micro_batches:
            batch = Batch(config.training.global_batch, micro, config.training.global_batch // (micro * ranks), ranks)
            choice = Choice(offer, nodes, devices, name, zero_config, batch, precision)
            outcome = _try(config, architecture, choice)
            if isinstance(outcome, Estimate):
                return Fitting(choice, outcome)
            refused.append(outcome)
    return refused


def _micro_batches(config: RunConfig, ranks: int) -> Iterator[int]:
    """Micro batches that divide the global batch over the ranks, the largest first."""
    rows, remainder = divmod(config.training.global_batch, ranks)
    if remainder:
        return
    fixed = config.training.micro_batch
    for micro in (fixed,) if fixed else range(min(rows, _LARGEST_MICRO_BATCH), 0, -1):
        if rows % micro == 0:
            yield micro


def one_pass_of(config: RunConfig, micro_batch: int, precision: Precision) -> Pass:
    """What each device of a run computes at once, at the most."""
    return Pass(
        micro_batch=micro_batch,
        sequence=config.data.max_length,
        gradient_checkpointing=config.training.gradient_checkpointing,
        precision=precision,
        adapters=config.lora_or_default if config.method == "qlora" else None,
    )


def _try(config: RunConfig, architecture: Architecture, choice: Choice) -> Estimate | Refusal:
    needed = estimate(
        architecture,
        one_pass_of(config, choice.batch.micro_batch, choice.precision),
        Machines(choice.offer.device, choice.offer.gpu_gib, choice.nodes, choice.devices_per_node),
        layout=zero_layout.layout(choice.zero_config, architecture.hidden_size) if choice.zero_config else None,
        optimizer=config.training.optimizer,
        converts=config.checkpoints.resume_from is not None,
        saved_bytes=saving.bytes_at_most(config),
    )
    if needed is None:
        reason = (
            f"the weights cannot be split by layers over {choice.devices_per_node} x {choice.offer.gpu_gib:.1f} GiB"
        )
        return Refusal(choice.place, choice, reason, math.inf)
    limits = [
        ("each GPU" if choice.offer.device.is_gpu else "each worker", needed.device, choice.device_limit_gib),
        ("the host", {**needed.host, "shared memory": needed.shared_memory_gib}, choice.host_limit_gib),
        ("the local disk", needed.disk, choice.offer.disk_gib or math.inf),
    ]
    excess, where, items, limit = max(
        (sum(items.values()) / limit, where, items, limit) for where, items, limit in limits
    )
    if excess > _FILLED:
        reason = (
            f"{where} needs {sum(items.values()):.1f} GiB of {limit:.1f}, of which 5 % stay free ({_largest(items)})"
        )
        return Refusal(choice.place, choice, reason, excess)
    return _evaluation_refusal(config, architecture, choice) or needed


def _evaluation_refusal(config: RunConfig, architecture: Architecture, choice: Choice) -> Refusal | None:
    """Why the model cannot be evaluated there, before training and after it."""
    offer, limit = choice.offer, choice.offer.gpu_gib or choice.offer.host_gib
    needed = evaluation_gib(
        config, architecture, offer.device, offer.gpu_gib, choice.devices_per_node, choice.precision
    )
    if needed is None:
        reason = f"the evaluation cannot hold the whole model on the {choice.devices_per_node} GPUs of one node"
        return Refusal(choice.place, choice, reason, math.inf)
    if needed > _FILLED * limit:
        reason = f"the evaluation, on one node without ZeRO, needs {needed:.1f} GiB of each GPU's {limit:.1f}"
        return Refusal(choice.place, choice, reason, needed / limit)
    return None


def _largest(items: dict[str, float], count: int = 3) -> str:
    largest = sorted(items.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {gib:.1f}" for name, gib in largest if gib >= 0.05)

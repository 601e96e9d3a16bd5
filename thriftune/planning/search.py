"""Search node types, node counts, strategies, their settings and micro batches for what fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from thriftune.batching import Batch
from thriftune.config import AUTO, RunConfig, Section
from thriftune.config.rules import NODE_COUNTS
from thriftune.errors import ConfigError
from thriftune.hardware import Precision, choose_precision
from thriftune.methods import METHODS
from thriftune.models import saving
from thriftune.models.architecture import Architecture
from thriftune.planning.memory import estimate
from thriftune.planning.memory.estimate import VALIDATION
from thriftune.planning.memory.validating import batch_of, bytes_of
from thriftune.planning.offers import FILLED, THIS_MACHINE, Offer
from thriftune.strategies import Machines, Strategy, candidates
from thriftune.strategies.memory.activations import StepShape
from thriftune.training_plan import Estimate

# A larger micro batch than this makes no step faster on the GPUs of the catalogue, and takes more memory.
_LARGEST_MICRO_BATCH = 16


@dataclass(frozen=True)
class Choice:
    """One way to run.

    Attributes:
        offer: The kind of machine.
        nodes: Number of machines.
        devices_per_node: GPUs of each machine, or worker processes on a CPU.
        strategy: The strategy.
        settings: Settings of the strategy, as JSON text.
        settings_name: A name to show for them; empty where there is none.
        batch: The batch, with micro batch and accumulation.
        precision: Precision of the matrix products.
        validation_batch: Rows per rank in one forward pass of a validation.
    """

    offer: Offer
    nodes: int
    devices_per_node: int
    strategy: Strategy
    settings: str
    settings_name: str
    batch: Batch
    precision: Precision
    validation_batch: int = 1

    @property
    def price_per_hour(self) -> float:
        """Price of all nodes per hour."""
        return self.nodes * self.offer.price_per_hour

    @property
    def share(self) -> float:
        """Share of a node that the pod takes: the GPUs it uses, out of all of them."""
        return self.devices_per_node / self.offer.gpus if self.offer.gpus else 1.0

    @property
    def host_limit_gib(self) -> float:
        """Host memory that the pod can have, in GiB."""
        return self.offer.host_gib * self.share

    @property
    def device_limit_gib(self) -> float:
        """Memory of a GPU, or a worker process's part of the host memory on a CPU; in GiB."""
        if self.offer.device.is_gpu:
            return self.offer.gpu_gib
        return self.offer.host_gib / self.devices_per_node

    @property
    def machines(self) -> str:
        """The machines, as text."""
        return f"{self.nodes} x {self.offer.name}"


@dataclass(frozen=True)
class Way:
    """A strategy with settings.

    Attributes:
        strategy: The strategy.
        settings: Settings of the strategy, as JSON text.
        settings_name: A name to show for them.
    """

    strategy: Strategy
    settings: str
    settings_name: str


@dataclass(frozen=True)
class Fitting:
    """A choice that fits.

    Attributes:
        choice: The choice.
        memory: The memory it needs.
    """

    choice: Choice
    memory: Estimate


@dataclass(frozen=True)
class Refusal:
    """A choice that does not fit.

    Attributes:
        machines: The machines, as text.
        choice: What was tried; None if the machines were refused before anything could be tried.
        reason: Why it does not fit, as a clause.
        excess: How far it is from fitting: what it needs divided by what there is; infinite where there is no number.
    """

    machines: str
    choice: Choice | None
    reason: str
    excess: float


def search(
    config: RunConfig,
    architecture: Architecture,
    offers: list[Offer],
    ways: list[Way],
    wanted: int,
) -> tuple[list[Fitting], list[Refusal]]:
    """The cheapest ways to run that fit, one per kind and number of machines.

    Args:
        config: The run.
        architecture: Its model.
        offers: Kinds of machines to choose among.
        ways: Strategies with their settings, the fastest first.
        wanted: Number of choices to find.

    Returns:
        The choices that fit, cheapest first; and why the others that were tried do not.
    """
    fitting: list[Fitting] = []
    refused: list[Refusal] = []
    tuned, trained = METHODS[config.method].planned(config, architecture)
    places = [(offer, nodes) for offer in offers for nodes in _node_counts(config, offer, ways)]
    # At an equal price fewer machines first: they have less to communicate.
    for offer, nodes in sorted(places, key=lambda p: (p[0].price_per_hour * p[1], p[1], p[0].name)):
        found = _fit(config, trained, tuned, offer, nodes, ways)
        if isinstance(found, Fitting):
            fitting.append(found)
            if len(fitting) == wanted:
                break
        else:
            refused += found
    return fitting, refused


def ways_of(config: RunConfig) -> list[Way]:
    """The strategies that a run may use, each with every setting it leaves to choose among, checked.

    Args:
        config: The run.

    Raises:
        ConfigError: Settings that the run names do not exist or are not valid.
    """
    ways = [
        Way(strategy, settings, name)
        for strategy in candidates(config)
        for name, settings in strategy.options(config).items()
    ]
    if problems := [problem for way in ways for problem in way.strategy.check(way.settings)]:
        raise ConfigError(problems)
    return ways


def _node_counts(config: RunConfig, offer: Offer, ways: list[Way]) -> tuple[int, ...]:
    if config.hardware.nodes is not None:
        return (config.hardware.nodes,)
    # Adapters use more nodes only if the run names them: gathering the base over a network is slow, which a price per
    # hour does not show.
    may_span = METHODS[config.method].facts.trains_weights and any(way.strategy.facts.may_span_nodes for way in ways)
    return NODE_COUNTS if may_span and not offer.is_own and offer.name != THIS_MACHINE else (1,)


def _fit(
    config: RunConfig, architecture: Architecture, tuned: Section | None, offer: Offer, nodes: int, ways: list[Way]
) -> Fitting | list[Refusal]:
    """The fastest way to run on these machines that fits, or the reasons why none does."""
    place = f"{nodes} x {offer.name}"
    if offer.host_gib <= 0:
        return [Refusal(place, None, "the node leaves no host memory for a pod", math.inf)]
    precision = choose_precision(config.training.precision, offer.device)
    refused: list[Refusal] = []
    for way in ways:
        facts, devices = way.strategy.facts, _devices(config, offer, way.strategy)
        if (facts.most_devices or devices) < devices or (nodes > 1 and not facts.may_span_nodes):
            continue
        if facts.needs_others and nodes * devices == 1 and config.strategy == AUTO:
            continue
        ranks = nodes * way.strategy.processes(devices)
        micro_batches = list(_micro_batches(config, ranks))
        if not micro_batches:
            per_pass = ranks * (config.training.micro_batch or 1)
            reason = f"training.global_batch {config.training.global_batch} is not a multiple of {per_pass}"
            refused.append(Refusal(place, None, reason, math.inf))
        for micro in micro_batches:
            batch = Batch(config.training.global_batch, micro, config.training.global_batch // (micro * ranks), ranks)
            step_shape = replace(step_shape_of(config, micro, precision), tuned=tuned)
            choice = Choice(offer, nodes, devices, way.strategy, way.settings, way.settings_name, batch, precision)
            outcome = _try(config, architecture, choice, step_shape)
            if isinstance(outcome, Fitting):
                return outcome
            refused.append(outcome)
    return list(dict.fromkeys(refused))


def _devices(config: RunConfig, offer: Offer, strategy: Strategy) -> int:
    """Devices of a node that a run uses: what it asks for; else all, or as many as the strategy it names can use."""
    asked = config.hardware.devices_per_node
    most = strategy.facts.most_devices if config.strategy != AUTO else None
    return asked or min(offer.gpus or 1, most or offer.gpus or 1)


def _micro_batches(config: RunConfig, ranks: int) -> Iterator[int]:
    """Micro batches that divide each rank's share of the global batch, the largest first."""
    rows, remainder = divmod(config.training.global_batch, ranks)
    if remainder:
        return
    fixed = config.training.micro_batch
    for micro in (fixed,) if fixed else range(min(rows, _LARGEST_MICRO_BATCH), 0, -1):
        if rows % micro == 0:
            yield micro


def step_shape_of(config: RunConfig, micro_batch: int, precision: Precision) -> StepShape:
    """The largest forward and backward pass that each device of a run computes.

    Args:
        config: The run.
        micro_batch: Rows at a time.
        precision: Precision of the matrix products.
    """
    return StepShape(
        micro_batch=micro_batch,
        sequence=config.data.max_length,
        gradient_checkpointing=config.training.gradient_checkpointing,
        precision=precision,
        tuned=METHODS[config.method].section(config),
        four_bit=METHODS[config.method].four_bit(config),
    )


def _try(config: RunConfig, architecture: Architecture, choice: Choice, step_shape: StepShape) -> Fitting | Refusal:
    machines = Machines(choice.offer.device, choice.offer.gpu_gib, choice.nodes, choice.devices_per_node)
    optimizer = config.training.optimizer
    needs = choice.strategy.memory(architecture, step_shape, machines, choice.settings, optimizer)
    rows = batch_of(config, architecture, step_shape, needs.devices) if needs else 1
    needed = estimate(
        choice.strategy,
        architecture,
        step_shape,
        machines,
        settings=choice.settings,
        optimizer=optimizer,
        validation_bytes=bytes_of(config, architecture, step_shape, rows),
        converts=config.checkpoints.resume_from is not None,
        saved_bytes=saving.bytes_at_most(config),
    )
    if needed is None:
        reason = (
            f"the weights cannot be split by layers over {choice.devices_per_node} x {choice.offer.gpu_gib:.1f} GiB"
        )
        return Refusal(choice.machines, choice, reason, math.inf)
    limits = [
        ("each GPU" if choice.offer.device.is_gpu else "each worker", needed.device, choice.device_limit_gib),
        ("the host", {**needed.host, "shared memory": needed.shared_memory_gib}, choice.host_limit_gib),
        ("the local disk", needed.disk, choice.offer.disk_gib or math.inf),
    ]
    excess, where, items, limit = max(
        (sum(items.values()) / limit, where, items, limit) for where, items, limit in limits
    )
    if excess > FILLED:
        when = " during validation" if where.startswith("each") and needed.phase == VALIDATION else ""
        amount = f"{sum(items.values()):.1f} GiB of {limit:.1f}{when}"
        reason = f"{where} needs {amount}, of which 5 % stay free ({_largest(items)})"
        return Refusal(choice.machines, choice, reason, excess)
    return Fitting(replace(choice, validation_batch=rows), needed)


def _largest(items: dict[str, float], count: int = 3) -> str:
    largest = sorted(items.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {gib:.1f}" for name, gib in largest if gib >= 0.05)

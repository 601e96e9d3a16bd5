"""Where a finished model is measured again: on the cheapest node type of the catalogue that holds it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from thriftune.config import BenchmarksConfig, HardwareConfig, RunConfig
from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.errors import ConfigError
from thriftune.hardware import Precision, PrecisionChoice, choose_precision
from thriftune.methods import METHODS
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.overhead import GIB, usable_for_weights, with_overhead
from thriftune.planned_node import EvaluationNode, NodeRequest
from thriftune.planning import matching, offers
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.memory.validating import held_by_row, held_by_rows
from thriftune.planning.offers import Offer
from thriftune.planning.verdict import fits
from thriftune.strategies.memory.adapters import split
from thriftune.strategies.memory.items import LASTING, WEIGHTS

_HALF = 2  # bytes of a weight in 16 bits
_ROWS = "rows"
# Tokens of a question with its choices, and of each solved example before it. An assumption: those of general-mini have
# 60, those of usual benchmarks up to 400.
_ITEM_TOKENS = 512


@dataclass(frozen=True)
class Held:
    """What a node has to hold.

    Attributes:
        architecture: The model.
        precision: Precision to compute in.
        four_bit: How it is held in 4 bits; None if it is not.
        rows_bytes: Bytes of the rows that are computed at once, by the precision of the products.
    """

    architecture: Architecture
    precision: PrecisionChoice
    four_bit: FourBit | None
    rows_bytes: Callable[[Precision], int]


def cheapest_node(held: Held, machines: Iterable[Offer]) -> EvaluationNode | None:
    """The first of some machines that holds a model, with as few of its GPUs as can.

    Args:
        held: What it has to hold.
        machines: The machines, cheapest first.

    Returns:
        The node; None if none holds it.
    """
    for offer in machines:
        precision = choose_precision(held.precision, offer.device)
        for devices in range(1, (offer.gpus or 1) + 1):
            if _fits(held, offer, devices, precision):
                return offers.node_on(offer, devices, precision, held.architecture)
    return None


def evaluation_node(config: RunConfig, architecture: Architecture, catalogue: Catalogue) -> EvaluationNode:
    """The cheapest node that holds what comes out of a run, on as few of its GPUs as can.

    Args:
        config: The run. Of its hardware, the kind of device is kept, or the node type if it is one's own.
        architecture: Its model.
        catalogue: Node types to choose among.

    Returns:
        The node. A result that is saved in fp32 is computed with in 16 bits where it would not fit otherwise.

    Raises:
        ConfigError: No node of the catalogue holds it.
    """
    hardware = _hardware_of(config, catalogue)
    free = config.model_copy(update={"hardware": hardware})

    def rows(precision: Precision) -> int:
        return config.evaluation.batch * held_by_rows(config, architecture, precision)

    held = Held(architecture, config.training.precision, held_in_four_bit(config), rows)
    node = cheapest_node(held, matching.matching(free, catalogue))
    if node is None:
        remedy = "Leave it out: the held-out loss is measured where the model trains."
        raise _nothing_holds("evaluation.saved_model", "true", hardware, "the result", remedy)
    return replace(node, is_asked=config.evaluation.saved_model)


def held_in_four_bit(config: RunConfig) -> FourBit | None:
    """How the result of a run is held in 4 bits, with the base that it is compared with; None if it is not.

    A merged model is held unquantized; an adapter that is not merged, on the base that it trained on.

    Args:
        config: The run.
    """
    method = METHODS[config.method]
    return None if method.facts.trains_weights or config.merges else method.four_bit(config)


def benchmark_node(
    section: BenchmarksConfig, held: Held, hardware: HardwareConfig, catalogue: Catalogue, *, interruptible: bool
) -> EvaluationNode:
    """The cheapest node that holds one model and what benchmarks need beside it.

    Args:
        section: The benchmarks.
        held: What it has to hold.
        hardware: The kind of device, or the node type, that is asked for.
        catalogue: Node types to choose among.
        interruptible: Whether tasks on GPUs run on spot nodes.

    Raises:
        ConfigError: No node of the catalogue holds it.
    """
    found: Sequence[Offer] = matching.for_one_model(hardware, held.precision, catalogue)
    if interruptible:
        found = sorted(map(offers.on_spot, found), key=lambda offer: (offer.price_per_hour, offer.name))
    node = cheapest_node(held, found)
    if node is None:
        what = f"the model with {section.batch} rows of benchmarks"
        remedy = "Lower benchmarks.batch or benchmarks.max_new_tokens, allow another device, or leave benchmarks out."
        raise _nothing_holds("benchmarks", f"batch {section.batch}", hardware, what, remedy)
    return node


def rows_of_benchmarks(
    section: BenchmarksConfig, architecture: Architecture, longest_held_out: int
) -> Callable[[Precision], int]:
    """Bytes of the rows that benchmarks compute at once, by the precision of the products.

    Args:
        section: The benchmarks.
        architecture: The model.
        longest_held_out: Tokens of the longest held-out row.
    """
    tokens = max(_ITEM_TOKENS * (1 + task.few_shot) for task in section.tasks)
    tokens = min(tokens, architecture.longest_input or tokens)
    if section.has_held_out:
        tokens = max(tokens, longest_held_out)
    return lambda precision: section.batch * held_by_row(architecture, precision, tokens, section.max_new_tokens)


def planned_benchmarks(
    config: RunConfig,
    architecture: Architecture,
    catalogue: Catalogue,
    here: Offer | None,
    *,
    interruptible: bool = False,
) -> EvaluationNode | None:
    """The node that each shard of a run's benchmarks has; None if it has no benchmarks.

    Args:
        config: The run.
        architecture: Its model, as it trains.
        catalogue: Node types to choose among.
        here: This machine, for a run on it.
        interruptible: Whether tasks on GPUs run on spot nodes.

    Raises:
        ConfigError: No node of the catalogue holds it.
    """
    section = config.benchmarks
    if section is None:
        return None
    if here is not None:
        node = on_this_machine(here, config.training.precision)
    else:
        rows = rows_of_benchmarks(section, architecture, config.data.max_length)
        held = Held(architecture, config.training.precision, held_in_four_bit(config), rows)
        node = benchmark_node(section, held, _hardware_of(config, catalogue), catalogue, interruptible=interruptible)
    return with_pods(node, section, models=1)


def planned_models(
    config: BenchmarkRun, architecture: Architecture, catalogue: Catalogue, here: Offer | None, *, interruptible: bool
) -> EvaluationNode:
    """The node that each shard of a run that only measures has.

    Args:
        config: The run.
        architecture: Its model.
        catalogue: Node types to choose among.
        here: This machine, for a run on it.
        interruptible: Whether tasks on GPUs run on spot nodes.

    Raises:
        ConfigError: No node of the catalogue holds it, or this machine is not what the run asks for.
    """
    section, hardware = config.benchmarks, config.hardware
    if here is not None:
        offers.require_machine(hardware, here)
        return with_pods(on_this_machine(here, config.precision), section, models=int(bool(config.adapters)))
    rows = rows_of_benchmarks(section, architecture, 0)
    held = Held(architecture, config.precision, FourBit() if config.quantize else None, rows)
    node = benchmark_node(section, held, hardware, catalogue, interruptible=interruptible)
    return with_pods(node, section, models=int(bool(config.adapters)))


def on_this_machine(here: Offer, precision: PrecisionChoice) -> EvaluationNode:
    """This machine, as what a model is measured on.

    Args:
        here: This machine.
        precision: Precision to compute in.
    """
    request = NodeRequest(here.cpus, math.floor(here.host_gib), 0, 0, here.gpus)
    computed = choose_precision(precision, here.device)
    return EvaluationNode(here.name, here.device, max(1, here.gpus), here.gpu_gib, computed, request, 0.0)


def with_pods(node: EvaluationNode, section: BenchmarksConfig, models: int) -> EvaluationNode:
    """A node with the number of pods that benchmarks run on such nodes.

    Args:
        node: The node.
        section: The benchmarks.
        models: Number of models, or groups of adapters, that are measured beside the base.
    """
    shards = len(section.tasks) * section.shards
    times = section.times_measured(on_gpu=node.hardware.is_gpu) if models else 1  # the noise is for comparing
    pods = shards * (times + models)
    return replace(node, pods=pods, parallel=min(section.parallel or pods, pods))


def _hardware_of(config: RunConfig, catalogue: Catalogue) -> HardwareConfig:
    hardware = config.hardware
    if not hardware.instance:
        return HardwareConfig(device=hardware.device)
    node = catalogue.get(hardware.instance)
    return HardwareConfig(device=node.device, instance=node.name if node.own else None)


def _fits(held: Held, offer: Offer, devices: int, precision: Precision) -> bool:
    """Whether the fullest device has room for its weights and for the rows that are measured at once."""
    four_bit, usable = held.four_bit, usable_for_weights(offer.gpu_gib, offer.device)
    shares = split(held.architecture, None, four_bit, precision, devices, usable)
    if shares is None:
        return False
    weights = max(share.weights.held_bytes(four_bit, precision) for share in shares)
    items = {WEIGHTS: weights, _ROWS: held.rows_bytes(precision)}
    needed = with_overhead(items, offer.device, lasting=LASTING)
    return fits(needed, (offer.gpu_gib or offer.host_gib) * GIB)


def _nothing_holds(field: str, value: str, hardware: HardwareConfig, what: str, remedy: str) -> ConfigError:
    having = f" with {hardware.device}" if hardware.device else ""
    message = f"no node of the catalogue{having} holds {what}."
    return ConfigError.single(field, value, message, remedy, code="plan-does-not-fit")


def planned_evaluation(
    config: RunConfig, architecture: Architecture, catalogue: Catalogue, here: Offer | None
) -> EvaluationNode | None:
    """The node that a run's result is measured on; None for a run on this machine.

    It is planned for every run: one whose training comes from the cache may have prompts that this was not asked.

    Args:
        config: The run.
        architecture: Its model.
        catalogue: Node types to choose among.
        here: This machine, for a run on it.

    Raises:
        ConfigError: No node of the catalogue holds it, and the run asks for it.
    """
    if here is not None:
        return None
    try:
        return evaluation_node(config, architecture, catalogue)
    except ConfigError:
        if config.evaluation.saved_model:
            raise
        return None

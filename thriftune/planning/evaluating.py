"""Where a finished model is measured again: on the cheapest node type of the catalogue that holds it."""

import math

from thriftune.config import HardwareConfig, RunConfig
from thriftune.errors import ConfigError
from thriftune.hardware import Precision, choose_precision
from thriftune.methods import METHODS
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.overhead import GIB, usable_for_weights, with_overhead
from thriftune.planning import offers
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.memory.validating import held_by_rows
from thriftune.planning.offers import DISK_BESIDE_GIB, Offer
from thriftune.planning.verdict import fits
from thriftune.strategies.memory.adapters import split
from thriftune.strategies.memory.items import LASTING, WEIGHTS
from thriftune.training_plan import EvaluationNode, NodeRequest

_HALF = 2  # bytes of a weight in 16 bits
_ROWS = "rows"


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
    method = METHODS[config.method]
    # A merged model is held unquantized; an adapter that is not merged, on the base that it trained on.
    four_bit = None if method.facts.trains_weights or config.merges else method.four_bit(config)
    for offer in offers.matching(free, catalogue):
        precision = choose_precision(config.training.precision, offer.device)
        for devices in range(1, (offer.gpus or 1) + 1):
            if _fits(config, architecture, offer, devices, precision, four_bit):
                is_asked = config.evaluation.saved_model
                return _node(offer, devices, precision, architecture, is_asked=is_asked)
    raise ConfigError.single(
        "evaluation.saved_model",
        "true",
        f"no node of the catalogue{f' with {hardware.device}' if hardware.device else ''} holds the result.",
        "Leave it out: the held-out loss is measured where the model trains.",
        code="plan-does-not-fit",
    )


def _hardware_of(config: RunConfig, catalogue: Catalogue) -> HardwareConfig:
    hardware = config.hardware
    if not hardware.instance:
        return HardwareConfig(device=hardware.device)
    node = catalogue.get(hardware.instance)
    return HardwareConfig(device=node.device, instance=node.name if node.own else None)


def _fits(
    config: RunConfig,
    architecture: Architecture,
    offer: Offer,
    devices: int,
    precision: Precision,
    four_bit: FourBit | None,
) -> bool:
    """Whether the fullest device has room for its weights and for the rows that are measured at once."""
    shares = split(architecture, None, four_bit, precision, devices, usable_for_weights(offer.gpu_gib, offer.device))
    if shares is None:
        return False
    weights = max(share.weights.held_bytes(four_bit, precision) for share in shares)
    rows = config.evaluation.batch * held_by_rows(config, architecture, precision)
    needed = with_overhead({WEIGHTS: weights, _ROWS: rows}, offer.device, lasting=LASTING)
    return fits(needed, (offer.gpu_gib or offer.host_gib) * GIB)


def _node(
    offer: Offer, devices: int, precision: Precision, architecture: Architecture, *, is_asked: bool
) -> EvaluationNode:
    share = devices / offer.gpus if offer.gpus else 1.0
    request = NodeRequest(
        cpus=max(1, math.floor(offer.cpus * share)),
        memory_gib=math.floor(offer.host_gib * share),
        shared_memory_gib=1,
        disk_gib=math.ceil(2 * _HALF * architecture.parameters / GIB) + DISK_BESIDE_GIB,
        gpus=devices if offer.gpus else 0,
    )
    name, price = offer.name, offer.price_per_hour
    return EvaluationNode(name, offer.device, devices, offer.gpu_gib, precision, request, price, is_asked)


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

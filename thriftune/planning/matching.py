"""The node types of the catalogue that a run's file allows, and why it allows none."""

from collections.abc import Callable

from thriftune.config import HardwareConfig, RunConfig
from thriftune.config.choices import METHODS
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import Device, PrecisionChoice, choose_precision
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.node_types import NodeType
from thriftune.planning.offers import Offer, of_node


def matching(config: RunConfig, catalogue: Catalogue) -> list[Offer]:
    """The node types of the catalogue that a run's file allows, cheapest first.

    Args:
        config: The run.
        catalogue: Node types to choose among.

    Raises:
        ConfigError: It allows none, with all reasons at once; or the device that it names is not known.
    """
    return _allowed(config.hardware, catalogue, lambda node, device: _contradictions(config, node, device))


def for_one_model(hardware: HardwareConfig, precision: PrecisionChoice, catalogue: Catalogue) -> list[Offer]:
    """The node types of the catalogue that may hold one model, cheapest first.

    Args:
        hardware: The kind of device, and the node type, that are asked for.
        precision: Precision to compute in.
        catalogue: Node types to choose among.

    Raises:
        ConfigError: None is allowed, with all reasons at once; or the device is not known.
    """

    def contradictions(node: NodeType, device: Device) -> list[Problem]:
        return _of_hardware(hardware, node) or _of_precision(precision, device)

    return _allowed(hardware, catalogue, contradictions)


def _allowed(
    hardware: HardwareConfig, catalogue: Catalogue, contradictions: Callable[[NodeType, Device], list[Problem]]
) -> list[Offer]:
    if hardware.device is not None:
        catalogue.device(hardware.device)
    problems: dict[str, Problem] = {}
    offers = []
    for node in _candidates(hardware, catalogue):
        device = catalogue.device(node.device)
        found = contradictions(node, device)
        problems |= {problem.field: problem for problem in found}
        if not found:
            offers.append(of_node(node, device, catalogue.interruptions_per_month))
    if not offers:
        raise ConfigError.of("plan-does-not-fit", list(problems.values()))
    return sorted(offers, key=lambda offer: (offer.price_per_hour, offer.name))


def _candidates(hardware: HardwareConfig, catalogue: Catalogue) -> list[NodeType]:
    """The node that a run names; else those that are not one's own and have the device that it names, or a GPU.

    The planner never chooses a CPU by itself: a model that trains on CPUs trains for weeks.

    Raises:
        ConfigError: There is none.
    """
    if hardware.instance:
        return [catalogue.get(hardware.instance)]
    rented = [node for node in catalogue.nodes if not node.own]
    nodes = [node for node in rented if (node.device == hardware.device if hardware.device else node.has_gpu)]
    if nodes:
        return nodes
    if not rented:
        message = "the catalogue has only machines of your own, on which no run is planned that does not name one."
        remedy = f"Set hardware.instance to {' or '.join(node.name for node in catalogue.nodes)}."
    elif hardware.device:
        message = "no node of the catalogue has it."
        remedy = "Use another device, or add such a node to the catalogue."
    else:
        message, remedy = "only CPUs are left to choose from.", "Set device: CPU."
    raise ConfigError.single("hardware.device", str(hardware.device or ""), message, remedy, code="plan-does-not-fit")


def _contradictions(config: RunConfig, node: NodeType, device: Device) -> list[Problem]:
    """The problems of a node type for a run: what the run's file asks for and the node does not have."""
    hardware, training = config.hardware, config.training
    if problems := _of_hardware(hardware, node):
        return problems
    if hardware.devices_per_node and node.has_gpu and hardware.devices_per_node > node.gpus:
        what = f"{node.name} has {node.gpus}." if hardware.instance else "no node of the catalogue has that many GPUs."
        problems.append(
            Problem("hardware.devices_per_node", str(hardware.devices_per_node), what, "Use fewer, or another node.")
        )
    if refused := _of_precision(training.precision, device):
        return problems + refused
    precision = choose_precision(training.precision, device)
    if METHODS[config.method].trains_weights and training.save_dtype == "fp32" and precision != "fp32":
        message = f"the weights train in {precision} on {node.name}, and saving them in fp32 only doubles the file."
        problems.append(Problem("training.save_dtype", "fp32", message, "Use 'auto', or train in fp32."))
    return problems


def _of_hardware(hardware: HardwareConfig, node: NodeType) -> list[Problem]:
    if hardware.device in (None, node.device):
        return []
    remedy = f"Use device: {node.device}, or leave one of the two out."
    return [Problem("hardware.device", str(hardware.device), f"{node.name} has {node.device}.", remedy)]


def _of_precision(precision: PrecisionChoice, device: Device) -> list[Problem]:
    try:
        choose_precision(precision, device)
    except ConfigError as error:
        return list(error.problems)
    return []

"""The machines a run can have: node types of the catalogue or this machine, as far as the run's file allows them."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from thriftune.config import HardwareConfig, RunConfig
from thriftune.config.choices import METHODS, STRATEGIES, strategies_of
from thriftune.disk import free_bytes
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import DEVICES, Device, Precision, choose_precision, detect_device, gpu_count
from thriftune.models.architecture import Architecture
from thriftune.planned_node import EvaluationNode, NodeRequest
from thriftune.planning.node_types import NodeType

logger = logging.getLogger(__name__)

THIS_MACHINE = "this machine"
_REMOTE = "or add --remote to run on a cluster."
_GIB = 2**30
_MODEL_AND_COPY = 4  # bytes of a weight in 16 bits, twice
# Disk of a node for everything besides models and checkpoints: prepared rows and their mapped copy, logs, compiled
# kernels. An assumption.
DISK_BESIDE_GIB = 10
# Share of its disk that a kubelet keeps free by evicting pods.
# Source: https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/ (nodefs.available)
_EVICTION = 0.1


@dataclass(frozen=True)
class Offer:
    """A kind of machine that a run can have.

    Attributes:
        name: Node type, or `THIS_MACHINE`.
        device: The kind of GPU, or the CPU.
        gpus: Number of GPUs; 0 on a CPU.
        gpu_gib: Memory of each GPU as the driver shows it, in GiB.
        host_gib: Host memory that a pod on an empty node can have, in GiB.
        cpus: Virtual CPUs that such a pod can have.
        disk_gib: Local disk for models and checkpoints, in GiB; 0 where it is not known.
        price_per_hour: Price of one machine per hour; 0 for this machine.
        is_own: Whether it is a node of one's own, of which there may be no second one.
        network_gbps: Network that lasts, in Gbit/s; 0 where it is not known.
        spot_price_per_hour: Price of one machine on the spot market; None where it is not known.
        interruptions_per_month: Interruptions of such a machine in a month on the spot market; None where that is not
            known.
        is_spot: Whether the run has it from the spot market, which may take it back at any time.
    """

    name: str
    device: Device
    gpus: int
    gpu_gib: float
    host_gib: float
    cpus: int
    disk_gib: float
    price_per_hour: float
    is_own: bool = False
    network_gbps: float = 0.0
    spot_price_per_hour: float | None = None
    interruptions_per_month: float | None = None
    is_spot: bool = False


def of_node(node: NodeType, device: Device, interruptions_per_month: float | None = None) -> Offer:
    """The offer of a node type of the catalogue.

    Args:
        node: The node type.
        device: Its device.
        interruptions_per_month: Of a node type that does not say it.
    """
    own = node.interruptions_per_month
    return Offer(
        name=node.name,
        device=device,
        gpus=node.gpus,
        gpu_gib=node.gpu_gib,
        host_gib=node.allocatable_host_gib,
        cpus=node.allocatable_vcpus,
        disk_gib=max(0.0, node.disk_gb * 1e9 / _GIB * (1 - _EVICTION) - DISK_BESIDE_GIB),
        price_per_hour=node.price_per_hour,
        is_own=node.own,
        network_gbps=node.network_gbps,
        spot_price_per_hour=node.spot_price_per_hour,
        interruptions_per_month=interruptions_per_month if own is None else own,
    )


def on_spot(offer: Offer) -> Offer:
    """The same machine from the spot market, as tasks on GPUs have it where the platform allows it (`interruptible`).

    Args:
        offer: The machine; one of one's own, and one without a GPU, is not from there.
    """
    if offer.is_own or offer.name == THIS_MACHINE or not offer.device.is_gpu:
        return offer
    price = offer.price_per_hour if offer.spot_price_per_hour is None else offer.spot_price_per_hour
    return replace(offer, is_spot=True, price_per_hour=price)


def node_on(offer: Offer, devices: int, precision: Precision, architecture: Architecture) -> EvaluationNode:
    """A node with some of the devices of a machine, and that share of its host.

    Args:
        offer: The machine.
        devices: Number of its devices.
        precision: Precision to compute in.
        architecture: The model that it holds.
    """
    share = devices / offer.gpus if offer.gpus else 1.0
    request = NodeRequest(
        cpus=max(1, math.floor(offer.cpus * share)),
        memory_gib=math.floor(offer.host_gib * share),
        shared_memory_gib=1,
        disk_gib=math.ceil(_MODEL_AND_COPY * architecture.parameters / _GIB) + DISK_BESIDE_GIB,
        gpus=devices if offer.gpus else 0,
    )
    name, price = offer.name, offer.price_per_hour
    return EvaluationNode(name, offer.device, devices, offer.gpu_gib, precision, request, price)


def this_machine(folder: Path = Path(), devices: Mapping[str, Device] = DEVICES) -> Offer:
    """The machine that this process runs on, with the memory and the disk that are free now.

    Args:
        folder: Where results will be written; it need not exist yet.
        devices: The known devices by name: the catalogue's.

    Raises:
        ConfigError: The machine has a GPU that is not known.
    """
    import psutil

    device = detect_device(devices)
    if device.name not in devices:
        capability = ".".join(map(str, device.compute_capability))
        raise ConfigError.single(
            "hardware.device",
            device.name,
            f"is this machine's GPU ({device.memory_gib} GiB, compute capability {capability}), which is not known.",
            "Add it to a catalogue's devices (docs/planning.md), or hide it (CUDA_VISIBLE_DEVICES='') to train on the "
            f"CPU. Known are {', '.join(devices)}.",
            code="plan-does-not-fit",
        )
    if not device.is_gpu:
        has = f"computes bfloat16 ({device.bf16_flag})" if device.bf16_flag else "has no instructions for bfloat16"
        logger.info("This CPU %s: precision auto is %s", has, choose_precision("auto", device))
    return Offer(
        name=THIS_MACHINE,
        device=device,
        gpus=gpu_count() if device.is_gpu else 0,
        gpu_gib=_gpu_gib() if device.is_gpu else 0.0,
        host_gib=psutil.virtual_memory().available / _GIB,
        cpus=os.cpu_count() or 1,
        disk_gib=free_bytes(folder) / _GIB,
        price_per_hour=0.0,
    )


def require_allowed_here(config: RunConfig, here: Offer, devices: Mapping[str, Device] = DEVICES) -> None:
    """Refuse a run that this machine cannot carry out.

    Args:
        config: The run.
        here: This machine.
        devices: All known devices by name: what the run asks for may be another one, and not have its precision either.

    Raises:
        ConfigError: The run asks for several nodes (they would wait for each other forever), for another device than
            this machine has, for more of them, or for a precision that its device lacks.
    """
    hardware = config.hardware
    problems = list(_other_machine(hardware, here))
    if (hardware.nodes or 1) > 1:
        problems.append(
            Problem("hardware.nodes", str(hardware.nodes), "a local run has one node.", f"Use nodes: 1, {_REMOTE}")
        )
    if hardware.device not in (None, here.device.name):
        pass  # said already
    elif not (here.device.is_gpu or _may_have_workers(config)) and (hardware.devices_per_node or 1) > 1:
        problems.append(
            Problem(
                "hardware.devices_per_node",
                str(hardware.devices_per_node),
                f"{METHODS[config.method].title} on the CPU is one process.",
                "Use devices_per_node: 1, or leave it out.",
            )
        )
    elif here.device.is_gpu and (hardware.devices_per_node or 1) > here.gpus:
        problems.append(
            Problem(
                "hardware.devices_per_node",
                str(hardware.devices_per_node),
                f"this machine has {here.gpus} GPUs.",
                f"Use at most {here.gpus}, {_REMOTE}",
            )
        )
    try:
        choose_precision(config.training.precision, devices.get(hardware.device or "", here.device))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError.of("plan-does-not-fit", problems)


def require_machine(hardware: HardwareConfig, here: Offer) -> None:
    """Refuse hardware that this machine is not.

    Args:
        hardware: The kind of device, and the node type, that are asked for.
        here: This machine.

    Raises:
        ConfigError: Another device is asked for, or a node type.
    """
    if problems := list(_other_machine(hardware, here)):
        raise ConfigError.of("plan-does-not-fit", problems)


def _other_machine(hardware: HardwareConfig, here: Offer) -> Iterator[Problem]:
    if hardware.instance is not None:
        yield Problem("hardware.instance", hardware.instance, "is not this machine.", f"Leave it out, {_REMOTE}")
    if hardware.device not in (None, here.device.name):
        message, remedy = f"this machine has {here.device.name}.", f"Use device: {here.device.name}, {_REMOTE}"
        yield Problem("hardware.device", str(hardware.device), message, remedy)


def _may_have_workers(config: RunConfig) -> bool:
    return any(STRATEGIES[name].is_distributed for name in strategies_of(config))


def _gpu_gib() -> float:
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory / _GIB)

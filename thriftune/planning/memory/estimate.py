"""What one run needs: GiB per GPU and per host, item by item, at the moment that needs the most."""

from dataclasses import dataclass, replace

from thriftune.hardware import Device
from thriftune.methods.adapters import adapter_parameters
from thriftune.models.architecture import Architecture
from thriftune.overhead import (
    GIB,
    GPU_PROCESS_BYTES,
    MIB,
    PROCESS,
    usable_for_weights,
    with_overhead,
)
from thriftune.planning.memory import adapters, disk, sharded
from thriftune.planning.memory.activations import Pass, measure
from thriftune.planning.memory.sharded import Phases
from thriftune.strategies.zero.layout import Layout
from thriftune.training_plan import Estimate

LOADING = "loading"
TRAINING = "training"
SAVING = "saving"
GATHERED = "gathered model"

# NCCL moves data of GPUs without peer access, such as the T4s of a machine, through /dev/shm. Its default buffer is
# 4 MiB per channel and direction (NCCL_BUFFSIZE); 16 channels of two directions are more than it opens over PCIe.
_SHARED_BYTES_PER_RANK = 2 * 16 * 4 * MIB
# Not there any more when a model is saved.
_MOMENTARY = (sharded.ACTIVATIONS, sharded.STEP_BUFFERS)


@dataclass(frozen=True)
class Machines:
    """What a run gets.

    Attributes:
        device: Kind of device.
        gpu_gib: Memory of each GPU that the driver shows; 0 on a CPU.
        nodes: Machines.
        devices_per_node: GPUs of each, or worker processes on a CPU.
    """

    device: Device
    gpu_gib: float
    nodes: int
    devices_per_node: int


def estimate(
    architecture: Architecture,
    one_pass: Pass,
    machines: Machines,
    *,
    layout: Layout | None,
    optimizer: str = "adamw",
    converts: bool = False,
    saved_bytes: int = 4,
) -> Estimate | None:
    """The memory of a run: full fine-tuning under ZeRO, LoRA or QLoRA.

    Args:
        architecture: The model.
        one_pass: What each device computes at once; with adapters for LoRA (16-bit base) and QLoRA (4-bit base).
        machines: What it runs on.
        layout: ZeRO's, for full fine-tuning.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd; ZeRO always steps AdamW.
        converts: Whether it may go on from a checkpoint of other ranks, which every node then converts whole.
        saved_bytes: Bytes of a saved weight, at the most, where every weight trains.

    Returns:
        The estimate; None where the weights alone do not fit the devices of a node.

    Source:
        `thriftune.planning.memory.activations`, `.sharded` and `.adapters` for the items;
        docs/memory.md for how close it is.
    """
    on_gpu = machines.device.is_gpu
    if layout is not None:
        ranks = machines.nodes * machines.devices_per_node
        activations = measure(architecture, one_pass).whole()
        shards = sharded.shards(architecture, one_pass, layout, ranks, activations, on_gpu=on_gpu)
        per_device, offloaded = [shards.device] * machines.devices_per_node, shards.host
        on_disk = sharded.nvme_bytes(architecture, one_pass, layout, ranks) * machines.devices_per_node
    else:
        assert one_pass.adapters is not None
        usable = usable_for_weights(machines.gpu_gib)
        shares = adapters.split(architecture, one_pass.adapters, one_pass.precision, machines.devices_per_node, usable)
        if shares is None:
            return None
        per_device = [adapters.phases(s, one_pass, optimizer, architecture, on_gpu=on_gpu) for s in shares]
        offloaded, on_disk = {}, 0
    processes = machines.devices_per_node if layout is not None else 1
    if not on_gpu:  # what is offloaded stays in the same memory, and in the same process
        per_device = [{name: _merged(items, offloaded) for name, items in phases.items()} for phases in per_device]
    phase = max(per_device[0], key=lambda name: max(sum(phases[name].values()) for phases in per_device))
    devices = [with_overhead(_filled(phases[phase]), on_gpu=on_gpu) for phases in per_device]
    gathered = saved_bytes * architecture.parameters if layout is not None else 0
    host_phases = _host(architecture, devices, offloaded, processes, on_gpu=on_gpu, gathered=gathered)
    host_phase = max(host_phases, key=lambda name: sum(host_phases[name].values()))
    writers = replace(machines, nodes=1) if converts else machines
    return Estimate(
        phase=phase,
        devices=[_in_gib(items) for items in devices],
        host_phase=host_phase,
        host=_in_gib(host_phases[host_phase]),
        training_host_gib=sum(host_phases[TRAINING].values()) / GIB,
        shared_memory_gib=_SHARED_BYTES_PER_RANK * processes / GIB if on_gpu and processes > 1 else 0.0,
        disk=_in_gib(_disk(architecture, one_pass, writers, layout, offloaded=on_disk, result=gathered)),
    )


def _host(
    architecture: Architecture,
    devices: list[dict[str, int]],
    offloaded: dict[str, int],
    processes: int,
    *,
    on_gpu: bool,
    gathered: int,
) -> Phases:
    """What one host holds while it trains, and while it saves: then the whole model is gathered on one rank.

    Args:
        architecture: The model.
        devices: Bytes by item of each device.
        offloaded: Bytes by item that each process keeps on the host.
        processes: Of the host.
        on_gpu: Whether devices are GPUs.
        gathered: Bytes of the result; 0 for an adapter.
    """
    training: dict[str, int] = {}
    if on_gpu:
        training = {PROCESS: GPU_PROCESS_BYTES * processes}
        training |= {f"offloaded {item}": count * processes for item, count in _filled(offloaded).items()}
        if not gathered:  # tensors are read one by one; the largest is there twice while it is quantized
            training[LOADING] = 2 * 2 * architecture.largest_parameter
    else:
        for items in devices:
            training = _merged(training, items)
    if not gathered:
        return {TRAINING: training}
    lasting = training if on_gpu else {k: v for k, v in training.items() if k not in _MOMENTARY}
    return {TRAINING: training, SAVING: {**lasting, GATHERED: gathered}}


def _disk(
    architecture: Architecture,
    one_pass: Pass,
    machines: Machines,
    layout: Layout | None,
    *,
    offloaded: int,
    result: int,
) -> dict[str, int]:
    """What the disk of the fullest node holds."""
    of_adapter = adapter_parameters(architecture, one_pass.adapters) if one_pass.adapters else {}
    checkpoint = disk.checkpoint_bytes(
        sum(of_adapter.values()) or architecture.parameters,
        is_full=layout is not None,
        precision=one_pass.precision,
        stage=layout.stage if layout is not None else 0,
        nodes=machines.nodes,
    )
    return disk.disk(architecture, result=result, offloaded=offloaded, checkpoint=checkpoint)


def _merged(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {item: first.get(item, 0) + second.get(item, 0) for item in (*first, *(k for k in second if k not in first))}


def _filled(items: dict[str, int]) -> dict[str, int]:
    return {item: count for item, count in items.items() if count}


def _in_gib(items: dict[str, int]) -> dict[str, float]:
    return {item: count / GIB for item, count in items.items()}

"""Memory of one run: GiB per GPU and per host, item by item, at the moment that needs the most."""

from functools import lru_cache, partial

from thriftune.config import Section
from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.overhead import GIB, GPU_PROCESS_BYTES, MIB, PROCESS, with_overhead
from thriftune.planning.memory import disk
from thriftune.planning.memory.validating import lasting
from thriftune.stores import transfer
from thriftune.strategies import Machines, Needs, Strategy
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.items import ACTIVATIONS, LASTING, STEP_BUFFERS, Phases
from thriftune.training_plan import Estimate

LOADING = "loading"
TRAINING = "training"
VALIDATION = "validation"
SAVING = "saving"
GATHERED = "gathered model"
TRANSFERS = "file transfers"
CHECKPOINT = "copy for a checkpoint"

# NCCL moves data between GPUs without peer access, such as the T4s of a machine, through /dev/shm. Its default buffer
# is 4 MiB per channel and direction (NCCL_BUFFSIZE); 16 channels in two directions are more than it opens over PCIe.
_SHARED_BYTES_PER_RANK = 2 * 16 * 4 * MIB
# Freed before a model is saved; what GPUs offload to the host goes by other names.
_MOMENTARY = (ACTIVATIONS, STEP_BUFFERS, LOADING, CHECKPOINT)


def estimate(
    strategy: Strategy,
    architecture: Architecture,
    step_shape: StepShape,
    machines: Machines,
    *,
    settings: str = "",
    optimizer: str = "adamw",
    validation_bytes: int = 0,
    converts: bool = False,
    saved_bytes: int = 4,
    needs: Needs | None = None,
) -> Estimate | None:
    """Estimate the memory of a run.

    Args:
        strategy: The strategy.
        architecture: The model.
        step_shape: What one forward and backward pass of a process computes; with adapters where these train.
        machines: The machines it runs on.
        settings: Settings of the strategy, as JSON text.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd; ZeRO always steps AdamW.
        validation_bytes: Bytes that a validation holds beside the model, gradients and optimizer states.
        converts: Whether it may resume from a checkpoint of other ranks, which every node then converts as a whole.
        saved_bytes: Bytes of a saved weight, at most, where every weight trains.
        needs: What the strategy's `memory` returned, where that is known already.

    Returns:
        The estimate; None where the weights alone do not fit on the devices of a node.

    Source:
        `thriftune.strategies` for the items; docs/memory.md for the accuracy.
    """
    on_gpu, processes = machines.device.is_gpu, strategy.processes(machines.devices_per_node)
    needs = needs or strategy.memory(architecture, step_shape, machines, settings, optimizer)
    if needs is None:
        return None
    per_device = [
        {**phases, VALIDATION: {**lasting(phases), ACTIVATIONS: validation_bytes}} for phases in needs.devices
    ]
    if not on_gpu:  # what is offloaded, or copied for a checkpoint, stays in the memory of the same process
        beside = {**needs.offloaded, CHECKPOINT: needs.saved}
        per_device = [{name: _merged(items, beside) for name, items in phases.items()} for phases in per_device]
    around = partial(with_overhead, device=machines.device, lasting=LASTING, processes=processes * machines.nodes)
    loads = [{name: around(_filled(items)) for name, items in phases.items()} for phases in per_device]
    phase = max(loads[0], key=lambda name: max(sum(phases[name].values()) for phases in loads))
    devices = [phases[phase] for phases in loads]
    gathered = saved_bytes * architecture.parameters if method_of(step_shape.tuned).facts.trains_weights else 0
    host_phases = _host(architecture, devices, needs, processes, on_gpu=on_gpu, gathered=gathered)
    host_phase = max(host_phases, key=lambda name: sum(host_phases[name].values()))
    trained = _trained(architecture, step_shape.tuned)
    is_divided = strategy.reshard is not None or strategy.state_files is not None
    writers = 1 if converts and is_divided else machines.nodes  # for other ranks every node needs all of it
    checkpoint = strategy.checkpoint_bytes(trained, step_shape.precision, settings, writers)
    on_disk = disk.disk(architecture, result=gathered, offloaded=needs.nvme * processes, checkpoint=checkpoint)
    return Estimate(
        phase=phase,
        devices=[_in_gib(items) for items in devices],
        host_phase=host_phase,
        host=_in_gib(host_phases[host_phase]),
        training_host_gib=sum(host_phases[TRAINING].values()) / GIB,
        shared_memory_gib=_SHARED_BYTES_PER_RANK * processes / GIB if on_gpu and processes > 1 else 0.0,
        disk=_in_gib(on_disk),
    )


@lru_cache(maxsize=64)
def _trained(architecture: Architecture, tuned: Section | None) -> int:
    """Number of parameters that train."""
    return sum(method_of(tuned).trained_parts(tuned, architecture).values())


def _host(
    architecture: Architecture,
    devices: list[dict[str, int]],
    needs: Needs,
    processes: int,
    *,
    on_gpu: bool,
    gathered: int,
) -> Phases:
    """Memory of one host during training, and during saving, when one rank gathers the whole model.

    Args:
        architecture: The model.
        devices: Bytes by item of each device.
        needs: What each process keeps on the host, and copies there while it loads.
        processes: Number of processes on the host.
        on_gpu: Whether devices are GPUs.
        gathered: Bytes of the result; 0 for an adapter.
    """
    training: dict[str, int] = {}
    if on_gpu:
        # Checkpoints are uploaded beside the training, and the result while the model is still held.
        training = {PROCESS: GPU_PROCESS_BYTES * processes, TRANSFERS: int(transfer.MEMORY_GIB * GIB)}
        training |= {f"offloaded {item}": count * processes for item, count in _filled(needs.offloaded).items()}
        # For adapters, tensors are read one by one; the largest exists twice while it is quantized.
        loading = needs.copied * processes + (0 if gathered else 2 * 2 * architecture.largest_parameter)
        # What is copied to load is gone before the first checkpoint.
        item, most = max((LOADING, loading), (CHECKPOINT, needs.saved * processes), key=lambda one: one[1])
        training |= _filled({item: most})
    else:
        for items in devices:
            training = _merged(training, items)
    if not gathered:
        return {TRAINING: training}
    lasting = {item: count for item, count in training.items() if item not in _MOMENTARY}
    return {TRAINING: training, SAVING: {**lasting, GATHERED: gathered}}


def _merged(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {item: first.get(item, 0) + second.get(item, 0) for item in (*first, *(k for k in second if k not in first))}


def _filled(items: dict[str, int]) -> dict[str, int]:
    return {item: count for item, count in items.items() if count}


def _in_gib(items: dict[str, int]) -> dict[str, float]:
    return {item: count / GIB for item, count in items.items()}

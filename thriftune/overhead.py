"""Memory of a device and a process besides tensors: measured where that was possible, else assumed."""

from collections.abc import Collection

from thriftune.hardware import Device

GIB = 2**30
MIB = 2**20

# Weights may take this share of the free memory; the rest is for activations, caches and fragmentation.
WEIGHTS_SHARE = 0.9

# On a CPU, freed blocks of this size are returned to the system (`thriftune.training.memory_watch`). With 1 MiB, a step
# of a 135M model takes a fifth longer.
RETURNED_BLOCK = 2 << 20

# Memory of a GPU that torch's allocator does not hand out; measured peaks do not contain it.
CONTEXT = "CUDA context"
COLLECTIVES = "collectives"
MARGIN = "fragmentation"
OVERHEAD = (CONTEXT, COLLECTIVES, MARGIN)
# On a CPU, ranks are processes: Python and its libraries take the place of a GPU's context.
PROCESS = "Python and libraries"

# Measured here: a worker that has imported torch, transformers and deepspeed, and taken its first step.
_PROCESS_BYTES = 700 * MIB
# The part of it that the libraries take before anything is loaded.
START_GIB = 500 / 1024
# Not measured here: a process with torch's CUDA libraries mapped; several share most of it.
GPU_PROCESS_BYTES = 2 * GIB
# By compute capability: kernels that were loaded and the driver's own structures after a step, which are neither free
# nor torch's. Sources: T4, 140.9 MiB in each of 69 runs (Anassbzdd/fitcheck, data/measurements); H100, docs/memory.md.
_CONTEXT_BYTES: dict[tuple[int, ...], int] = {(7, 5): 141 * MIB, (9, 0): 1536 * MIB}
# An assumption for the GPUs between these two.
_OTHER_CONTEXT_BYTES = 600 * MIB
# An assumption: NCCL's buffers (NCCL_BUFFSIZE, 4 MiB, for 16 channels in two directions), and as much for its kernels.
_COLLECTIVES_BYTES = 2 * 16 * 2 * 4 * MIB
# What torch's allocator holds beyond tensors, as a share of those that come and go; what lasts is packed tightly. It
# was 0.05 to 0.47 in 23 runs on T4s, without expandable segments; with 0.3 none of their totals is more than 5 % low.
# Source: Anassbzdd/fitcheck, data/measurements; tests/memory/test_published.py.
FRAGMENTATION = 0.30


def with_overhead(
    items: dict[str, int], device: Device, *, lasting: Collection[str], processes: int = 1
) -> dict[str, int]:
    """The memory of a device in bytes by item: its tensors and the overhead around them.

    Args:
        items: Bytes of tensors by item.
        device: The kind of device.
        lasting: The items that stay from step to step.
        processes: Processes that talk to each other.
    """
    if not device.is_gpu:
        return {PROCESS: _PROCESS_BYTES, **items}
    together = {COLLECTIVES: _COLLECTIVES_BYTES} if processes > 1 else {}
    passing = sum(size for item, size in items.items() if item not in lasting)
    return {CONTEXT: _context_bytes(device), **together, **items, MARGIN: int(FRAGMENTATION * passing)}


def usable_for_weights(gpu_gib: float, device: Device) -> int:
    """Most bytes that loading fills on a GPU: `thriftune.models.loading.max_memory` of the free memory there."""
    return int((gpu_gib * GIB - _context_bytes(device)) * WEIGHTS_SHARE)


def _context_bytes(device: Device) -> int:
    return _CONTEXT_BYTES.get(device.compute_capability, _OTHER_CONTEXT_BYTES)

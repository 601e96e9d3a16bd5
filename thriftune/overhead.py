"""Memory of a device and a process besides tensors: measured where that was possible here, else assumed."""

GIB = 2**30
MIB = 2**20

# Weights may take this share of the free memory; the rest is for activations, caches and fragmentation.
WEIGHTS_SHARE = 0.9

# On a CPU, freed blocks of this size are returned to the system (`thriftune.training.memory_watch`). With 1 MiB, a step
# of a 135M model takes a fifth longer.
RETURNED_BLOCK = 2 << 20

# Memory of a GPU that torch's allocator does not hand out; measured peaks do not contain it.
CONTEXT = "CUDA context"
MARGIN = "fragmentation"
# On a CPU, ranks are processes: Python and its libraries take the place of a GPU's context.
PROCESS = "Python and libraries"

# Measured here: a worker that has imported torch, transformers and deepspeed, and taken its first step.
_PROCESS_BYTES = 700 * MIB
# The part of it that the libraries take before anything is loaded.
START_GIB = 500 / 1024
# Not measured here: a process with torch's CUDA libraries mapped; several share most of it.
GPU_PROCESS_BYTES = 2 * GIB
# Not measured here: kernels and cuBLAS workspace of a T4 with lazy loading, and NCCL's channels.
_CONTEXT_BYTES = 600 * MIB
# torch's caching allocator cannot use every gap. The share is an assumption: published peaks are allocated bytes.
_FRAGMENTATION = 0.06


def with_overhead(items: dict[str, int], *, on_gpu: bool) -> dict[str, int]:
    """The memory of a device in bytes by item: its tensors and the overhead around them."""
    if not on_gpu:
        return {PROCESS: _PROCESS_BYTES, **items}
    return {CONTEXT: _CONTEXT_BYTES, **items, MARGIN: int(_FRAGMENTATION * sum(items.values()))}


def usable_for_weights(gpu_gib: float) -> int:
    """Most bytes that loading fills on a GPU: `thriftune.models.loading.max_memory` of the free memory there."""
    return int((gpu_gib * GIB - _CONTEXT_BYTES) * WEIGHTS_SHARE)

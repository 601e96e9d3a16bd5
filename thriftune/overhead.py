"""What a device and a process hold besides tensors: measured where that was possible here, assumed where it was not."""

GIB = 2**30
MIB = 2**20

# Weights may take this share of what is free; the rest is for activations, caches and fragmentation.
WEIGHTS_SHARE = 0.9

# On a CPU, freed blocks of this size go back to the system (`thriftune.training.memory_watch`). At 1 MiB a step of a
# 135M model takes a fifth longer.
RETURNED_BLOCK = 2 << 20

# Items of a GPU that torch's allocator does not hand out; measured peaks do not contain them.
CONTEXT = "CUDA context"
MARGIN = "fragmentation"
# On a CPU, ranks are processes: Python and its libraries stand where a GPU has its context.
PROCESS = "Python and libraries"

# Measured here: a worker that has imported torch, transformers and deepspeed, and taken its first step.
_PROCESS_BYTES = 700 * MIB
# Of that, what the libraries take before anything is loaded.
START_GIB = 500 / 1024
# Not measured here: a process with torch's CUDA libraries mapped; several share most of it.
GPU_PROCESS_BYTES = 2 * GIB
# Not measured here: kernels and cuBLAS workspace of a T4 with lazy loading, and NCCL's channels.
_CONTEXT_BYTES = 600 * MIB
# torch's caching allocator cannot use every gap. The share is an assumption: published peaks are allocated bytes.
_FRAGMENTATION = 0.06


def with_overhead(items: dict[str, int], *, on_gpu: bool) -> dict[str, int]:
    """Tensors of a device, in bytes by item, with what surrounds them."""
    if not on_gpu:
        return {PROCESS: _PROCESS_BYTES, **items}
    return {CONTEXT: _CONTEXT_BYTES, **items, MARGIN: int(_FRAGMENTATION * sum(items.values()))}


def usable_for_weights(gpu_gib: float) -> int:
    """Bytes that loading fills on a GPU at the most: `thriftune.models.loading.max_memory` of what is free there."""
    return int((gpu_gib * GIB - _CONTEXT_BYTES) * WEIGHTS_SHARE)

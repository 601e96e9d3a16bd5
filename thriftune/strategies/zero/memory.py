"""Memory of a training under ZeRO: what each rank holds on its device and on its host.

Every term is a buffer of DeepSpeed's own (0.19): runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, and for stage 0
runtime/fp16/unfused_optimizer.py. They were compared with measured runs (benchmarks/memory.py, docs/memory.md).
P is the number of parameters that train, N the number of ranks. Frozen weights have no states and no gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.overhead import RETURNED_BLOCK
from thriftune.strategies.memory.activations import Peaks, StepShape
from thriftune.strategies.memory.adapters import kept_small
from thriftune.strategies.memory.items import (
    ACTIVATIONS,
    CONSTANTS,
    FORWARD_BACKWARD,
    GRADIENTS,
    KEPT,
    STATES,
    STEP,
    STEP_BUFFERS,
    WEIGHTS,
    Phases,
    kept_by_malloc,
)
from thriftune.strategies.zero.layout import Layout
from thriftune.strategies.zero.parts import WIDTHS as _BYTES
from thriftune.strategies.zero.parts import Parts, parts_of

_MASTER = 4  # fp32
_MOMENTS = 8  # AdamW's two, fp32

BUFFERS = "ZeRO buffers"
ROUNDING = "page-locked rounding"
# DeepSpeed swaps through this many buffers of the largest parameter (its default buffer_count is 4 or 5).
_NVME_BUFFERS = 5


@dataclass(frozen=True)
class Shards:
    """Memory that one rank holds.

    Attributes:
        device: Bytes by item on the device, per phase.
        host: Bytes by item in host memory: what is offloaded, without the process itself.
    """

    device: Phases
    host: dict[str, int]


def shards(
    architecture: Architecture, step_shape: StepShape, layout: Layout, ranks: int, activations: Peaks, *, on_gpu: bool
) -> Shards:
    """Memory that one rank of a training with AdamW holds.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.
        layout: Where ZeRO keeps what.
        ranks: Number of ranks (N).
        activations: Peak bytes of the activations of one pass.
        on_gpu: Whether devices are GPUs; on a CPU the process keeps small blocks that were freed.

    Returns:
        Its bytes.
    """
    parts = parts_of(architecture, step_shape)
    held = _held(parts, step_shape, layout, ranks)
    buffers = _buffers(parts, step_shape, layout, activations)
    step = _step_buffers(parts, step_shape, layout, ranks, on_gpu=on_gpu)
    moved = _offloaded(parts, step_shape, layout, ranks)
    while_stepping = {**held, GRADIENTS: _gradients_while_stepping(held[GRADIENTS], layout, ranks)}
    device = {
        FORWARD_BACKWARD: {**held, BUFFERS: buffers, ACTIVATIONS: activations.all},
        STEP: {**while_stepping, STEP_BUFFERS: step},
    }
    for items in device.values():
        items.update(dict.fromkeys(moved, 0))
    host = _on_host(parts, step_shape, layout, ranks, moved, on_gpu=on_gpu)
    if not on_gpu and layout.stage in (1, 2):  # gloo gathers the updated weights into a copy
        gathered = _BYTES[step_shape.precision] * parts.trained
        device[STEP][BUFFERS] = max(0, gathered - device[STEP][STEP_BUFFERS])
    if not on_gpu:
        kept = _kept_of_gathered(parts, step_shape, ranks, architecture.parameters) if layout.stage == 3 else 0
        if not method_of(step_shape.tuned).facts.trains_weights:
            kept += kept_small(architecture, step_shape)
        device[FORWARD_BACKWARD][KEPT] = kept
        device[STEP][KEPT] = kept + kept_by_malloc(activations)
    return Shards(device, host)


def _gradients_while_stepping(gradients: int, layout: Layout, ranks: int) -> int:
    """Below stage 3 gradients are converted to fp32 before AdamW starts; stage 1 still holds those of its own shard."""
    return {1: gradients // ranks, 2: 0}.get(layout.stage, gradients)


def _offloaded(parts: Parts, step_shape: StepShape, layout: Layout, ranks: int) -> dict[str, int]:
    """Bytes that are offloaded from the device, by item, to host memory or to a disk."""
    width, part = _BYTES[step_shape.precision], -(-parts.trained // ranks)
    moved = {}
    if layout.offloaded_optimizer != "none":
        gradients = (layout.gradient_width or width) * part
        moved = {STATES: (_MASTER + _MOMENTS) * part, GRADIENTS: gradients, STEP_BUFFERS: 4 * part}
        if layout.stage < 3:  # the updated weights in 16 bits on their way back, and one gradient on its way here
            moved[STEP_BUFFERS] += width * (part + parts.largest_trained)
    if layout.offloaded_params != "none":
        moved[WEIGHTS] = width * part + parts.frozen // ranks
    return moved


def _on_host(
    parts: Parts,
    step_shape: StepShape,
    layout: Layout,
    ranks: int,
    moved: dict[str, int],
    *,
    on_gpu: bool,
) -> dict[str, int]:
    """The part of it in host memory: everything except what goes to a disk, which passes through buffers here."""
    host = dict(moved)
    if layout.offloaded_optimizer == "nvme":
        host[STATES] = (_MASTER + _MOMENTS) * _NVME_BUFFERS * parts.largest_trained
    if layout.offloaded_params == "nvme":
        host[WEIGHTS] = _NVME_BUFFERS * parts.largest
    if layout.is_pinned and on_gpu:
        host[ROUNDING] = sum(_rounding(size) for size in _pinned(parts, step_shape, layout, ranks, host))
    return host


def nvme_bytes(architecture: Architecture, step_shape: StepShape, layout: Layout, ranks: int) -> int:
    """Bytes that one rank of a run keeps on a local disk.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.
        layout: Where ZeRO keeps what.
        ranks: Number of ranks (N).
    """
    moved = _offloaded(parts_of(architecture, step_shape), step_shape, layout, ranks)
    states = moved.get(STATES, 0) if layout.offloaded_optimizer == "nvme" else 0
    return states + (moved.get(WEIGHTS, 0) if layout.offloaded_params == "nvme" else 0)


def _pinned(parts: Parts, step_shape: StepShape, layout: Layout, ranks: int, host: dict[str, int]) -> Iterator[int]:
    """Sizes of the page-locked buffers of one rank. AdamW's moments are in ordinary memory."""
    part = -(-parts.trained // ranks)
    if WEIGHTS in host:
        yield host[WEIGHTS]
    if layout.offloaded_optimizer != "cpu":
        return
    if layout.stage < 3:
        yield from (_MASTER * part, 4 * part, _BYTES[step_shape.precision] * part)
        return
    yield host[GRADIENTS]
    for start in range(0, part, layout.sub_group):  # master weights and fp32 gradients, in one buffer per sub-group
        yield from (4 * min(layout.sub_group, part - start),) * 2


def _rounding(size: int) -> int:
    """Bytes that torch's page-locked allocator adds to a block: it rounds up to the next power of two."""
    return (1 << (size - 1).bit_length()) - size if size else 0


def _held(parts: Parts, step_shape: StepShape, layout: Layout, ranks: int) -> dict[str, int]:
    """What lasts from step to step, and the gradients: at least 16 bytes a parameter before anything is sharded.

    Source: ZeRO (arXiv 1910.02054), section 3: stage 1 divides the optimizer states by N, stage 2 the gradients too,
    and stage 3 the weights as well. DeepSpeed keeps fp32 master weights also when it trains in fp32.
    """
    width, whole = _BYTES[step_shape.precision], parts.trained
    part = -(-whole // ranks)
    if layout.stage == 0:
        held = _held_undivided(step_shape, whole)
        return {**held, WEIGHTS: held[WEIGHTS] + parts.frozen, CONSTANTS: parts.constants}
    return {
        WEIGHTS: width * part + parts.frozen // ranks if layout.stage == 3 else width * whole + parts.frozen,
        CONSTANTS: parts.constants,
        STATES: (_MASTER + _MOMENTS) * part,
        GRADIENTS: (layout.gradient_width or width) * (whole if layout.stage == 1 else part),
    }


def _held_undivided(step_shape: StepShape, whole: int) -> dict[str, int]:
    """Stage 0: plain AdamW in fp32; in 16 bits DeepSpeed's FP16_UnfusedOptimizer, for bf16 too."""
    width = _BYTES[step_shape.precision]
    master = 0 if step_shape.precision == "fp32" else _MASTER
    return {WEIGHTS: width * whole, STATES: (master + _MOMENTS) * whole, GRADIENTS: width * whole}


def _step_buffers(parts: Parts, step_shape: StepShape, layout: Layout, ranks: int, *, on_gpu: bool) -> int:
    """Gradients in fp32 and AdamW's temporaries for what is updated at once: a shard, in stage 3 a sub-group of it."""
    width, part = _BYTES[step_shape.precision], -(-parts.trained // ranks)
    temporaries = 4 if on_gpu else 8  # torch's AdamW takes the square root in place on a GPU, but not on a CPU
    if layout.stage == 0:  # parameter by parameter; on a GPU many at once
        at_once = parts.trained if on_gpu else parts.largest_trained
        return temporaries * at_once + (0 if step_shape.precision == "fp32" else 4 * parts.trained)
    if layout.stage == 3:  # a sub-group ends with the parameter that fills it
        part = min(part, layout.sub_group + -(-parts.largest_trained // ranks))
    return part * max(4 + temporaries, 4 + 2 * width if layout.stage < 3 else 0)


def _buffers(parts: Parts, step_shape: StepShape, layout: Layout, activations: Peaks) -> int:
    """Buckets in which gradients are reduced, and in stage 3 the weights that are gathered at the same time."""
    width = _BYTES[step_shape.precision]
    if layout.stage == 0:  # gradients are flattened and summed over the ranks after activations are freed
        return max(0, width * parts.trained - activations.all)
    # With overlap_comm one bucket is reduced while the next one fills.
    bucket = max(layout.reduce_bucket * (2 if layout.overlaps else 1), parts.largest_trained)
    if layout.stage < 3:
        return width * (bucket + (parts.largest_trained if layout.offloaded_optimizer != "none" else 0))
    # The head is in use while layers are prefetched, up to the limit of live parameters.
    live = min(width * layout.live_parameters, 2 * parts.layer)
    return width * (bucket + layout.prefetch) + parts.largest + live


def _kept_of_gathered(parts: Parts, step_shape: StepShape, ranks: int, parameters: int) -> int:
    """What malloc on a CPU keeps of the weights that stage 3 gathers and frees: the small blocks.

    Source: measured. In fp32 two thirds of a shard stay in addition, also where weights are gathered in 4 bits; where
    they stay is not understood.
    """
    small = sum(size for size in parts.sizes if size < RETURNED_BLOCK)
    return small + (2 * _MASTER * parameters // ranks // 3 if step_shape.precision == "fp32" else 0)

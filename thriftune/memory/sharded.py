"""Full fine-tuning under ZeRO: what each rank holds on its device and on its host.

Every term is a buffer of DeepSpeed's own (0.19): runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, and for stage 0
runtime/bf16_optimizer.py. They were set side by side with measured runs (benchmarks/memory.py, docs/memory.md).
P stands for all parameters, N for the ranks.
"""

import math
from dataclasses import dataclass

from thriftune.architecture import Architecture
from thriftune.memory.activations import Pass, Peaks
from thriftune.memory_watch import RETURNED_BLOCK
from thriftune.zero import Layout

_MASTER = 4  # fp32
_MOMENTS = 8  # AdamW's two, fp32
# Freed small blocks leave holes between others; measured, two to two and a half times what they held at once.
HOLES = 2
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Phases = dict[str, dict[str, int]]
FORWARD_BACKWARD = "forward and backward"
STEP = "optimizer step"
WEIGHTS = "weights"
GRADIENTS = "gradients"
STATES = "optimizer states"
STEP_BUFFERS = "optimizer's working memory"
BUFFERS = "ZeRO buffers"
ACTIVATIONS = "activations"
KEPT = "freed, kept by malloc"


@dataclass(frozen=True)
class Shards:
    """What one rank holds.

    Attributes:
        device: Bytes by item on the device, per phase.
        host: Bytes by item in host memory, without the process itself; all of it offloaded.
    """

    device: Phases
    host: dict[str, int]


def shards(
    architecture: Architecture, one_pass: Pass, layout: Layout, ranks: int, activations: Peaks, *, on_gpu: bool
) -> Shards:
    """What one rank of full fine-tuning with AdamW holds.

    Args:
        architecture: The model.
        one_pass: What is computed at once.
        layout: Where ZeRO puts what.
        ranks: N.
        activations: Of one pass.
        on_gpu: Whether devices are GPUs; on a CPU freed small blocks stay with the process.

    Returns:
        Its bytes.
    """
    held = _held(architecture, one_pass, layout, ranks)
    buffers = _buffers(architecture, one_pass, layout)
    step = _step_buffers(architecture, one_pass, layout, ranks, on_gpu=on_gpu)
    host = _offloaded(architecture, one_pass, layout, ranks)
    # Below stage 3 the gradients become fp32 ones, and are freed before AdamW starts.
    while_stepping = held if layout.stage in (0, 3) else {**held, GRADIENTS: 0}
    device = {
        FORWARD_BACKWARD: {**held, BUFFERS: buffers, ACTIVATIONS: activations.all},
        STEP: {**while_stepping, STEP_BUFFERS: 0 if STEP_BUFFERS in host else step},
    }
    for items in device.values():
        items.update(dict.fromkeys(host, 0))
    if not on_gpu and layout.stage in (1, 2):  # gloo gathers the stepped weights into a copy
        gathered = _BYTES[one_pass.precision] * architecture.parameters
        device[STEP][BUFFERS] = max(0, gathered - device[STEP][STEP_BUFFERS])
    if not on_gpu:
        kept = _kept_by_malloc(architecture, one_pass, layout)
        device[FORWARD_BACKWARD][KEPT] = kept
        device[STEP][KEPT] = kept + HOLES * activations.small
    return Shards(device, host)


def _offloaded(architecture: Architecture, one_pass: Pass, layout: Layout, ranks: int) -> dict[str, int]:
    """What lies in host memory, by item. Whatever is named here is not on the device."""
    width, part = _BYTES[one_pass.precision], -(-architecture.parameters // ranks)
    host = {}
    if layout.offloaded_optimizer != "none":
        host = {STATES: (_MASTER + _MOMENTS) * part, GRADIENTS: width * part, STEP_BUFFERS: 4 * part}
        if layout.stage < 3:  # the stepped weights in 16 bits, on their way back, and one gradient on its way here
            host[STEP_BUFFERS] += width * (part + architecture.largest_parameter)
    if layout.offloaded_params != "none":
        host[WEIGHTS] = width * part
    return {item: count for item, count in host.items() if layout.offloaded_optimizer != "nvme" or item == GRADIENTS}


def _held(architecture: Architecture, one_pass: Pass, layout: Layout, ranks: int) -> dict[str, int]:
    """What lasts from step to step, and the gradients: 16 bytes a parameter and more before anything is divided.

    Source: ZeRO (arXiv 1910.02054), section 3: stage 1 divides the optimizer states by N, stage 2 the gradients as
    well, stage 3 the weights too. DeepSpeed keeps fp32 master weights also when it trains in fp32, except in stage 0.
    """
    width = _BYTES[one_pass.precision]
    whole = architecture.parameters
    part = -(-whole // ranks)
    master = 0 if layout.stage == 0 and one_pass.precision == "fp32" else _MASTER
    states = (master + _MOMENTS) * (part if layout.stage else whole)
    gradients = {
        # BF16_Optimizer sums gradients in fp32.
        0: whole * (4 if one_pass.precision == "bf16" else width),
        1: whole * width,
        2: part * width,
        3: part * width,
    }[layout.stage]
    return {WEIGHTS: width * (part if layout.stage == 3 else whole), STATES: states, GRADIENTS: gradients}


def _step_buffers(architecture: Architecture, one_pass: Pass, layout: Layout, ranks: int, *, on_gpu: bool) -> int:
    """Gradients in fp32 and AdamW's temporaries, of what is stepped at once: a shard, in stage 3 a sub-group of it."""
    width, part = _BYTES[one_pass.precision], -(-architecture.parameters // (ranks if layout.stage else 1))
    if layout.stage == 3:  # a sub-group ends with the parameter that fills it
        part = min(part, layout.sub_group + -(-architecture.largest_parameter // ranks))
    temporaries = 4 if on_gpu else 8  # torch's AdamW: sqrt in place over many tensors on a GPU, not so on a CPU
    gradients = 4 if layout.stage else 0
    return part * max(gradients + temporaries, gradients + 2 * width if layout.stage in (1, 2) else 0)


def _buffers(architecture: Architecture, one_pass: Pass, layout: Layout) -> int:
    """Buckets that gradients are reduced in; in stage 3 the weights that are gathered at one moment."""
    width = _BYTES[one_pass.precision]
    bucket = max(layout.reduce_bucket, architecture.largest_parameter)
    if layout.stage < 3:
        return width * (bucket + (architecture.largest_parameter if layout.offloaded_optimizer != "none" else 0))
    gathered = max(
        architecture.largest_parameter + layout.prefetch,
        min(layout.live_parameters, 2 * architecture.layer_parameters) + layout.prefetch,
    )
    return width * (bucket + gathered)


def _kept_by_malloc(architecture: Architecture, one_pass: Pass, layout: Layout) -> int:
    """On a CPU: blocks too small to go back to the system, which stage 3 gathers weights in and frees again."""
    if layout.stage < 3:
        return 0
    sizes = (_BYTES[one_pass.precision] * math.prod(shape) for shape in architecture.shapes.values())
    return sum(size for size in sizes if size < RETURNED_BLOCK)

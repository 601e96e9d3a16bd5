"""Memory of LoRA and QLoRA: a frozen base model, split by layers over the devices of one node, with adapters.

Which layers lie on which device is not guessed: transformers' own `device_map="auto"` computes it, for the model on
the meta device and with the memory that `thriftune.models.loading` would allow it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from thriftune.config import Section
from thriftune.hardware import Precision, torch_dtype
from thriftune.methods import method_of
from thriftune.models.architecture import Architecture, layer_of
from thriftune.models.quantization import FourBit, Weights, replace_layers, weights_of
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.items import (
    ACTIVATIONS,
    FORWARD_BACKWARD,
    GRADIENTS,
    KEPT,
    STATES,
    STEP,
    STEP_BUFFERS,
    WEIGHTS,
    kept_by_malloc,
)

_STATE_BLOCK = 256  # values that share an absmax in the 8-bit optimizers

# Shares of the activations, and of those in small blocks; fitted: see `_kept_in_autocast`.
_AUTOCAST_COPIES = 0.2
_AUTOCAST_SMALL = 0.8
# Bytes of the optimizer's states per trained parameter, as fp32 tensors.
_STATE_BYTES = {"adamw": 8.0, "sgd": 0.0}
_EIGHT_BIT = 2 * (1 + 4 / _STATE_BLOCK)


@dataclass(frozen=True)
class DeviceShare:
    """The part of a model that one device of a node holds.

    Attributes:
        weights: Weights of the base model.
        adapters: Number of parameters of the adapters on them.
        layers: Indices of the decoder layers on this device.
        has_head: Whether the output head is on this device.
    """

    weights: Weights
    adapters: int
    layers: tuple[int, ...]
    has_head: bool


def phases(
    share: DeviceShare, step_shape: StepShape, optimizer: str, architecture: Architecture, *, on_gpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes by item on one device, per phase.

    Args:
        share: What the device holds.
        step_shape: What one forward and backward pass computes.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd.
        architecture: The model.
        on_gpu: Whether devices are GPUs; on a CPU the process keeps small blocks that were freed.

    Source:
        QLoRA (arXiv 2305.14314), sections 2 and 3. peft converts what is not in 4 bits to fp32, and trains
        fp32 adapters on a 16-bit base.
    """
    needed = measure(architecture, step_shape).of(share.layers, has_head=share.has_head)
    weights = share.weights.held_bytes(step_shape.four_bit, step_shape.precision) + 4 * share.adapters
    held = {WEIGHTS: weights, STATES: state_bytes(share.adapters, optimizer), GRADIENTS: 4 * share.adapters}
    in_place = on_gpu and is_8_bit(optimizer)
    forward = {**held, ACTIVATIONS: needed.all}
    step = {**held, STEP_BUFFERS: 0 if in_place else 4 * share.adapters}
    if not on_gpu:
        forward[KEPT] = _kept_in_autocast(share, step_shape, architecture)
        step[KEPT] = kept_by_malloc(needed)
    return {FORWARD_BACKWARD: forward, STEP: step}


def _kept_in_autocast(share: DeviceShare, step_shape: StepShape, architecture: Architecture) -> int:
    """What malloc on a CPU keeps of the copies that autocast makes, in the first pass or in recomputed layers.

    Source: fitted to the measured runs; a GPU's allocator reuses such blocks for the next tensor.
    """
    if step_shape.precision == "fp32":
        return kept_small(architecture, step_shape)
    whole = measure(architecture, replace(step_shape, gradient_checkpointing=False))
    activations = whole.of(share.layers, has_head=share.has_head)
    copies = min(_AUTOCAST_COPIES * activations.all, _AUTOCAST_SMALL * activations.small)
    return int(copies) + 2 * share.adapters


def kept_small(architecture: Architecture, step_shape: StepShape) -> int:
    """The small blocks among all activations of a pass, also those that are computed again: malloc on a CPU keeps them.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.

    Source: fitted to the measured runs.
    """
    return measure(architecture, replace(step_shape, gradient_checkpointing=False)).whole().small


def state_bytes(parameters: int, optimizer: str) -> int:
    """Bytes of the optimizer states of trained parameters.

    Paged states may move to the host when a GPU is full; until then they are on the GPU, and are counted there.

    Args:
        parameters: Number of trained parameters.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd.

    Source: 8-bit optimizers (arXiv 2110.02861): one byte per state and an fp32 absmax per block of 256.
    """
    return int(parameters * _STATE_BYTES.get(optimizer, _EIGHT_BIT))


def is_8_bit(optimizer: str) -> bool:
    """Whether an optimizer is one of bitsandbytes', which steps weight by weight; on a GPU in place.

    Args:
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd.

    Source: bitsandbytes 0.50, `optimizer_update_8bit_blockwise` for CUDA.
    """
    return optimizer not in _STATE_BYTES


@lru_cache(maxsize=256)
def split(
    architecture: Architecture,
    tuned: Section | None,
    four_bit: FourBit | None,
    precision: Precision,
    devices: int,
    usable_bytes: int,
) -> tuple[DeviceShare, ...] | None:
    """How a base model is split over the devices of a node.

    Args:
        architecture: The model.
        tuned: The section of the run file about the adapters on it; None if there are none.
        four_bit: How it is quantized to 4 bits; None if it is not.
        precision: Precision of what is not in 4 bits.
        devices: GPUs of the node, or 1 for a CPU.
        usable_bytes: Bytes that loading may fill on each (`thriftune.models.loading.max_memory`).

    Returns:
        The share of each device; None where the weights do not fit.
    """
    # Known at once, where placing hundreds of layers takes seconds.
    if devices > 1 and _least_bytes(architecture, four_bit) > devices * usable_bytes:
        return None
    placed = {"": 0} if devices == 1 else _device_map(architecture, four_bit, precision, devices, usable_bytes)
    if placed is None:
        return None
    names: list[list[str]] = [[] for _ in range(devices)]
    for name in architecture.shapes:
        names[_device_of(name, placed)].append(name)
    adapters = [0] * devices
    for module, count in (method_of(tuned).trained_parts(tuned, architecture) if tuned else {}).items():
        adapters[_device_of(f"{module}.weight", placed)] += count
    return tuple(
        DeviceShare(
            weights_of(architecture, names[device]),
            adapters[device],
            layers=tuple(sorted({int(layer_of(name).rpartition(".")[2]) for name in names[device] if layer_of(name)})),
            has_head=architecture.head_name in names[device],
        )
        for device in range(devices)
    )


@lru_cache(maxsize=64)
def _least_bytes(architecture: Architecture, four_bit: FourBit | None) -> int:
    """What the weights take at least while they are loaded: nothing but 4 bits and 16 bits, and no constants."""
    weights = weights_of(architecture, architecture.shapes)
    return weights.quantized // 2 + 2 * (weights.fused + weights.other) if four_bit else 2 * weights.all


def _device_of(name: str, placed: dict[str, int]) -> int:
    """The device of a parameter: that of the innermost module in the map that contains it."""
    under = max((module for module in placed if not module or f"{name}.".startswith(f"{module}.")), key=len)
    return placed[under]


@lru_cache(maxsize=2)
def _to_place(architecture: Architecture, four_bit: FourBit | None, precision: Precision) -> tuple[Any, Any]:
    """A model on the meta device, and what quantizes it; None for nothing. To build 80 layers takes a second."""
    dtype = torch_dtype(precision)
    model = architecture.on_meta(dtype)
    return model, replace_layers(model, dtype, four_bit) if four_bit else None


def _device_map(
    architecture: Architecture, four_bit: FourBit | None, precision: Precision, devices: int, usable_bytes: int
) -> dict[str, int] | None:
    from accelerate.utils import modeling
    from transformers.integrations import accelerate as placing

    # Where layers go depends on bytes alone, which both types of 16 bits have as many of.
    model, quantize = _to_place(architecture, four_bit, "fp32" if precision == "fp32" else "bf16")
    limits: dict[int | str, int] = dict.fromkeys(range(devices), usable_bytes)
    modeling.logger.setLevel("ERROR")  # it warns that this machine has no such GPUs
    try:
        placed = placing._get_device_map(model, "auto", limits, quantize)  # noqa: SLF001 - as loading does
    except ValueError:  # from the quantizer: some layers would have to be on the host
        return None
    if any(not isinstance(device, int) for device in placed.values()):
        return None
    return dict(placed)

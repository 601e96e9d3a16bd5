"""LoRA and QLoRA: a frozen base model split by layers over the devices of one node, and adapters that train.

Which layers lie on which device is not guessed: transformers' own `device_map="auto"` (which accelerate's became) is
asked, for the model on the meta device and the memory that `thriftune.loading` would allow it.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from thriftune.architecture import Architecture, layer_of
from thriftune.config import LoraConfig
from thriftune.hardware import Precision
from thriftune.memory.activations import Pass, measure, quantizer, traced_dtype
from thriftune.memory.sharded import (
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

# Source: bitsandbytes 0.50: blocks of 64 weights share an absmax, blocks of 256 absmax share another.
_BLOCK = 64
_NESTED_BLOCK = 256
_STATE_BLOCK = 256  # of the 8-bit optimizers
_SMALLEST_8_BIT = 4096  # smaller tensors keep fp32 states

# Shares of the activations, and of those in small blocks; fitted: see `_kept_in_autocast`.
_AUTOCAST_COPIES = 0.2
_AUTOCAST_SMALL = 0.8
# Bytes of the optimizer's states per trained parameter, as fp32 tensors.
_STATE_BYTES = {"adamw": 8.0, "sgd": 0.0}
_EIGHT_BIT = 2 * (1 + 4 / _STATE_BLOCK)


@dataclass(frozen=True)
class DeviceShare:
    """What one device of a node holds.

    Attributes:
        linear: Weights in linear layers (in 4 bits for QLoRA).
        fused: Weights in tensors of all experts of a layer, which stay in 16 bits.
        other: Other weights: embeddings, norms, the output head.
        adapters: Parameters of the adapters on those layers.
        layers: Indices of the decoder layers here.
        has_head: Whether the output head is here.
    """

    linear: int
    fused: int
    other: int
    adapters: int
    layers: tuple[int, ...]
    has_head: bool


def phases(
    share: DeviceShare, one_pass: Pass, optimizer: str, architecture: Architecture, *, on_gpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes by item on one device, per phase.

    Args:
        share: What it holds.
        one_pass: What is computed at once.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd.
        architecture: The model.
        on_gpu: Whether devices are GPUs; on a CPU freed small blocks stay with the process.

    Source:
        QLoRA (arXiv 2305.14314), sections 2 and 3. peft turns what is not in 4 bits into fp32, and trains fp32
        adapters on a 16-bit base.
    """
    assert one_pass.adapters is not None
    needed = measure(architecture, one_pass).of(share.layers, has_head=share.has_head)
    weights = base_bytes(share, one_pass.adapters, one_pass.precision) + 4 * share.adapters
    held = {WEIGHTS: weights, STATES: state_bytes(share.adapters, optimizer), GRADIENTS: 4 * share.adapters}
    forward, step = {**held, ACTIVATIONS: needed.all}, {**held, STEP_BUFFERS: 4 * share.adapters}
    if not on_gpu:
        forward[KEPT] = _kept_in_autocast(share, one_pass, architecture)
        step[KEPT] = kept_by_malloc(needed)
    return {FORWARD_BACKWARD: forward, STEP: step}


def _kept_in_autocast(share: DeviceShare, one_pass: Pass, architecture: Architecture) -> int:
    """What malloc keeps on a CPU of the copies that autocast makes, in the first pass or in recomputed layers.

    Source: fitted to the measured runs; a GPU's allocator gives such blocks to the next tensor.
    """
    if one_pass.precision == "fp32":
        return 0
    whole = measure(architecture, replace(one_pass, gradient_checkpointing=False))
    activations = whole.of(share.layers, has_head=share.has_head)
    copies = min(_AUTOCAST_COPIES * activations.all, _AUTOCAST_SMALL * activations.small)
    return int(copies) + 2 * share.adapters


def base_bytes(share: DeviceShare, lora: LoraConfig, precision: Precision) -> int:
    """The frozen weights, with the quantization constants."""
    width = 4 if precision == "fp32" else 2
    if not lora.four_bit:
        return width * (share.linear + share.fused + share.other)
    constants = 1 / _BLOCK + 4 / (_BLOCK * _NESTED_BLOCK) if lora.double_quantization else 4 / _BLOCK
    return int(share.linear * (0.5 + constants)) + width * share.fused + 4 * share.other


def state_bytes(parameters: int, optimizer: str) -> int:
    """The optimizer's states of trained parameters.

    Paged states may move to the host when a GPU is full; until then they are on it, and they are counted there.

    Source: 8-bit optimizers (arXiv 2110.02861): one byte per state and an fp32 absmax per block of 256.
    """
    return int(parameters * _STATE_BYTES.get(optimizer, _EIGHT_BIT))


def adapter_parameters(architecture: Architecture, lora: LoraConfig) -> dict[str, int]:
    """Parameters of the adapter on each linear layer that has one: rank x (in + out), by the layer's name.

    Source: LoRA (arXiv 2106.09685), section 4.1; names match as peft matches them: whole, or after a dot.
    """
    return {
        name: lora.rank * (out + inside)
        for name, (out, inside) in architecture.linear_shapes.items()
        if lora.target_modules is None or any(f".{name}".endswith(f".{target}") for target in lora.target_modules)
    }


@lru_cache(maxsize=256)
def split(
    architecture: Architecture, lora: LoraConfig, precision: Precision, devices: int, usable_bytes: int
) -> tuple[DeviceShare, ...] | None:
    """How a base model is split over the devices of a node.

    Args:
        architecture: The model.
        lora: The LoRA section.
        precision: Precision of what is not in 4 bits.
        devices: GPUs of the node, or 1 for a CPU.
        usable_bytes: What loading may fill on each (`thriftune.loading.max_memory`).

    Returns:
        A share per device, or None where the weights do not fit.
    """
    placed = {"": 0} if devices == 1 else _device_map(architecture, lora, precision, devices, usable_bytes)
    if placed is None:
        return None
    adapters = adapter_parameters(architecture, lora)
    on = [dict.fromkeys(("linear", "fused", "other", "adapters"), 0) for _ in range(devices)]
    layers: list[set[int]] = [set() for _ in range(devices)]
    heads = set()
    for name, shape in architecture.shapes.items():
        module = name.rpartition(".")[0]
        device = _device_of(name, placed)
        is_linear = module in architecture.linear_shapes and name.endswith(".weight")
        kind = "linear" if is_linear else "fused" if len(shape) > 2 else "other"
        on[device][kind] += math.prod(shape)
        on[device]["adapters"] += adapters.get(module, 0) if is_linear else 0
        if layer_of(name):
            layers[device].add(int(layer_of(name).rpartition(".")[2]))
        if name == architecture.head_name:
            heads.add(device)
    return tuple(
        DeviceShare(**on[device], layers=tuple(sorted(layers[device])), has_head=device in heads)
        for device in range(devices)
    )


def _device_of(name: str, placed: dict[str, int]) -> int:
    """The device of a parameter: that of the longest module name in the map that it lies under."""
    under = max((module for module in placed if not module or f"{name}.".startswith(f"{module}.")), key=len)
    return placed[under]


def _device_map(
    architecture: Architecture, lora: LoraConfig, precision: Precision, devices: int, usable_bytes: int
) -> dict[str, int] | None:
    from accelerate.utils import modeling
    from transformers.integrations.accelerate import _get_device_map

    dtype = traced_dtype(precision)
    model = architecture.on_meta(dtype)
    quantize = quantizer(lora, dtype) if lora.four_bit else None
    if quantize is not None:
        quantize.preprocess_model(model=model, device_map=None)
    limits: dict[int | str, int] = dict.fromkeys(range(devices), usable_bytes)
    modeling.logger.setLevel("ERROR")  # it warns that this machine has no such GPUs
    try:
        placed = _get_device_map(model, "auto", limits, quantize)
    except ValueError:  # the quantizer's: some layers are left over for the host
        return None
    if any(not isinstance(device, int) for device in placed.values()):
        return None
    return dict(placed)

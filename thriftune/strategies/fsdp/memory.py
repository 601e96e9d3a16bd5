"""Memory of a training under FSDP: what each rank holds on its device and on its host; and what ranks exchange.

Terms are buffers of torch 2.13 (torch/distributed/fsdp/_fully_shard). They have not been compared with runs on GPUs.
N is the number of ranks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from thriftune.config import Section
from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit, weights_of
from thriftune.strategies.base import Machines, Needs
from thriftune.strategies.coordination import OVERLAPPED, Coordination, of_ring
from thriftune.strategies.fsdp.policy import Settings, unit_names
from thriftune.strategies.mapped import copied_bytes
from thriftune.strategies.memory.activations import StepShape, measure
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

GATHERED = "gathered weights"
REDUCED = "gradients being summed"


_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_MASTER = 4  # fp32
_MOMENTS = 8  # AdamW's two, fp32
# The unit that computes, and the one that is gathered meanwhile, both whole.
_UNITS_AT_ONCE = 2
# Gathered parts come in one buffer, from which every weight gets its own.
_FLAT = 1
# One unit's gradients are summed while those of the one before are still in use.
_SUMS_AT_ONCE = 2


@dataclass(frozen=True)
class Part:
    """Weights of a model, such as those of one unit.

    Attributes:
        frozen: Those that are not in 4 bits.
        quantized: Those in 4 bits.
        trained: Those that train: of the model itself, or adapters on it.
    """

    frozen: int
    quantized: int
    trained: int

    def gathered(self, width: int) -> int:
        """Bytes of them on one device while it computes with them.

        Args:
            width: Bytes of a weight that is computed with.
        """
        return width * (self.frozen + self.trained) + self.quantized // 2


def needs(architecture: Architecture, step_shape: StepShape, machines: Machines, settings: Settings) -> Needs:
    """Memory of a training with AdamW.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass of a process computes.
        machines: The machines it runs on.
        settings: The strategy's.
    """
    ranks = machines.nodes * machines.devices_per_node
    computes_in = settings.computes_in(step_shape.precision)
    units = _units(architecture, step_shape.tuned, step_shape.four_bit, settings.wrap)
    on_gpu = machines.device.is_gpu
    held = _held(units, ranks, _BYTES[computes_in], step_shape)
    trained = sum(unit.trained for unit in units)
    activations = measure(architecture, step_shape).whole()
    passing = _passing(units, _BYTES[computes_in], _BYTES[settings.reduces_in], settings)
    largest = -(-architecture.largest_parameter // ranks)
    # torch's AdamW takes the square root in place on a GPU, for all weights at once.
    step = 4 * trained // ranks if on_gpu else 2 * 4 * min(largest, trained)
    device: Phases = {
        FORWARD_BACKWARD: {**held, **passing, ACTIVATIONS: activations.all},
        STEP: {**held, STEP_BUFFERS: step},
    }
    if not on_gpu:
        device[STEP][KEPT] = kept_by_malloc(activations)
        if step_shape.precision == "fp32" and not method_of(step_shape.tuned).facts.trains_weights:
            device[FORWARD_BACKWARD][KEPT] = kept_small(architecture, step_shape) + kept_by_malloc(activations)
    copied, saved = copied_bytes(architecture), held[STATES] + _MASTER * trained // ranks
    if not settings.offloads(machines.device):
        return Needs([device] * machines.devices_per_node, copied=copied, saved=saved)
    host = {item: held[item] for item in (WEIGHTS, STATES, GRADIENTS)} | {STEP_BUFFERS: step}
    for items in device.values():
        items.update(dict.fromkeys(items.keys() & host.keys(), 0))
    return Needs([device] * machines.devices_per_node, host, copied=copied, saved=saved)


def coordination(
    architecture: Architecture, step_shape: StepShape, machines: Machines, settings: Settings, accumulation: int
) -> Coordination:
    """What each device does besides computing in one optimizer step.

    Units are gathered for the forward pass, and again for the backward pass if they were freed; gradients are summed
    and divided in every pass.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass of a process computes.
        machines: The machines it runs on.
        settings: The strategy's.
        accumulation: Passes in one optimizer step.
    """
    ranks = machines.nodes * machines.devices_per_node
    units = _units(architecture, step_shape.tuned, step_shape.four_bit, settings.wrap)
    gathered = sum(unit.gathered(_BYTES[settings.computes_in(step_shape.precision)]) for unit in units)
    trained = sum(unit.trained for unit in units)
    gathers = 2 if settings.reshard_after_forward else 1
    sent = gathers * of_ring(gathered, ranks) + of_ring(_BYTES[settings.reduces_in] * trained, ranks)
    if not settings.offloads(machines.device):
        return Coordination(accumulation * sent, updated=trained // ranks, overlapped=OVERLAPPED)
    moved = accumulation * max(gathers * gathered, _MASTER * trained) // ranks
    return Coordination(accumulation * sent, moved, updated_on_host=trained // ranks, overlapped=OVERLAPPED)


def _held(units: Iterable[Part], ranks: int, width: int, step_shape: StepShape) -> dict[str, int]:
    """What lasts from step to step, and gradients: parts of everything but the quantization constants.

    The constants of weights in 4 bits stay whole on every rank.
    """
    frozen, quantized = sum(unit.frozen for unit in units), sum(unit.quantized for unit in units)
    trained = sum(unit.trained for unit in units)
    part = {
        WEIGHTS: (width * frozen + quantized // 2 + _MASTER * trained) // ranks,
        STATES: _MOMENTS * trained // ranks,
        GRADIENTS: _MASTER * trained // ranks,
    }
    if step_shape.four_bit is not None:
        part[CONSTANTS] = int(quantized * step_shape.four_bit.constants)
    return part


def _passing(units: tuple[Part, ...], width: int, reduced: int, settings: Settings) -> dict[str, int]:
    """What units hold while layers compute.

    What no unit has stays gathered during a whole pass, and the output head until its backward pass; the embeddings are
    gathered before and after the others.
    """
    embeddings, *layers, outside = units
    largest = max(unit.gathered(width) for unit in layers)
    gathered = (_UNITS_AT_ONCE + _FLAT) * largest
    if not settings.reshard_after_forward:
        gathered = sum(unit.gathered(width) for unit in (embeddings, *layers)) + _FLAT * largest
    trained = max(unit.trained for unit in units)
    return {GATHERED: gathered + outside.gathered(width), REDUCED: (width + _SUMS_AT_ONCE * reduced) * trained}


@lru_cache(maxsize=64)
def _units(
    architecture: Architecture, tuned: Section | None, four_bit: FourBit | None, wrap: tuple[str, ...] | None
) -> tuple[Part, ...]:
    """Weights by unit: first the embeddings, unless they are the head; last what is in no unit, with the head."""
    method = method_of(tuned)
    skeleton = architecture.skeleton
    embeddings = skeleton.get_input_embeddings()
    table = next(name for name, module in skeleton.named_modules() if module is embeddings)
    is_head = architecture.head_name == f"{table}.weight"
    units = ("" if is_head else table, *unit_names(skeleton, wrap), "")
    members: dict[str, list[str]] = {name: [] for name in units}
    for name in architecture.shapes:
        members[_unit_of(name, units)].append(name)
    trained = dict.fromkeys(units, 0)
    for module, count in method.trained_parts(tuned, architecture).items():
        trained[_unit_of(f"{module}.weight", units)] += count
    is_own = method.facts.trains_weights
    parts = {name: _part(architecture, members[name], trained[name], four_bit, is_own=is_own) for name in units}
    outside = parts.pop("")
    return (*([Part(0, 0, 0)] if is_head else []), *parts.values(), outside)


def _part(
    architecture: Architecture, names: list[str], trained: int, four_bit: FourBit | None, *, is_own: bool
) -> Part:
    all_of_them = sum(math.prod(architecture.shapes[name]) for name in names)
    quantized = weights_of(architecture, names).quantized if four_bit else 0
    return Part(all_of_them - quantized - (min(trained, all_of_them) if is_own else 0), quantized, trained)


def _unit_of(name: str, units: tuple[str, ...]) -> str:
    """The innermost unit that a parameter is in; empty outside of all."""
    inside = [unit for unit in units if unit and name.startswith(f"{unit}.")]
    return max(inside, key=len, default="")

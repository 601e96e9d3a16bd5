"""Memory of a model whose own weights train, on a device that holds all of it: the frozen ones and those that train.

What trains is held in fp32 with its gradients and the optimizer's states, while autocast computes with copies in 16
bits; what is frozen is held in the precision of the training, and has neither.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from thriftune.config import Section
from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.adapters import state_bytes
from thriftune.strategies.memory.items import (
    ACTIVATIONS,
    AUTOCAST_COPIES,
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

_MASTER, _HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    Attributes:
        frozen: Those that do not train.
        trained: Those that train.
        embedding: Those of the embedding table, if it trains.
        largest: Those of the largest weight that trains.
    """

    frozen: int
    trained: int
    embedding: int
    largest: int


@lru_cache(maxsize=64)
def counts(architecture: Architecture, tuned: Section | None) -> Counts:
    """Count what trains and what does not.

    Args:
        architecture: The model.
        tuned: The section of the run file about what trains; None where every weight trains.
    """
    parts = method_of(tuned).trained_parts(tuned, architecture)
    skeleton = architecture.skeleton
    table: Any = skeleton.get_input_embeddings()
    embedding = next(name for name, module in skeleton.named_modules() if module is table)
    trained, of_table = sum(parts.values()), table.weight.numel() if embedding in parts else 0
    largest = min(max(parts.values()), architecture.largest_parameter)  # a part may be a weight and its bias
    return Counts(architecture.parameters - trained, trained, of_table, largest)


def whole(architecture: Architecture, step_shape: StepShape, optimizer: str, *, on_gpu: bool) -> Phases:
    """Bytes by item on a device that holds the whole model, at each moment.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or sgd.
        on_gpu: Whether devices are GPUs; on a CPU the process keeps small blocks that were freed.
    """
    count = counts(architecture, step_shape.tuned)
    is_mixed = step_shape.precision != "fp32"
    held = {
        WEIGHTS: (_HALF if is_mixed else _MASTER) * count.frozen + _MASTER * count.trained,
        # bitsandbytes keeps the states of embeddings in fp32.
        STATES: state_bytes(count.trained - count.embedding, optimizer) + state_bytes(count.embedding, "adamw"),
        GRADIENTS: _MASTER * count.trained,
    }
    activations = measure(architecture, step_shape).whole()
    forward = {**held, ACTIVATIONS: activations.all}
    if is_mixed and step_shape.gradient_checkpointing:  # without, they are among what layers keep
        forward[AUTOCAST_COPIES] = _HALF * count.trained
    # torch's AdamW takes the square root in place on a GPU, for all parameters at once; on a CPU one after another.
    step = {**held, STEP_BUFFERS: _MASTER * count.trained if on_gpu else 2 * _MASTER * count.largest}
    if not on_gpu:
        step[KEPT] = kept_by_malloc(activations)
    return {FORWARD_BACKWARD: forward, STEP: step}

"""Memory of a validation, which uses the model where it trains, with as many rows as need no more than training."""

from thriftune.config import RunConfig
from thriftune.hardware import Precision
from thriftune.models.architecture import Architecture
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.items import ACTIVATIONS, FORWARD_BACKWARD, KEPT, Phases

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
# Bytes per logit, beside the logits: their fp32 copy without the last position, and cross-entropy's result from it.
_COPIES = 4 + 4


def batch_of(config: RunConfig, architecture: Architecture, step_shape: StepShape, devices: list[Phases]) -> int:
    """Rows per forward pass of a validation: `evaluation.batch`, or fewer where that needs more memory than training.

    Args:
        config: The run.
        architecture: Its model.
        step_shape: What one forward and backward pass of the training computes.
        devices: Bytes by item on each device of a node, at each moment of the training.
    """
    held = [sum(lasting(phases).values()) for phases in devices]
    in_training = [size + phases[FORWARD_BACKWARD][ACTIVATIONS] for size, phases in zip(held, devices, strict=True)]
    # The fullest device counts: split by layers, a device holds the activations of its own layers only.
    room = max(in_training) - max(held)
    return max(1, min(config.evaluation.batch, room // bytes_of(config, architecture, step_shape, 1)))


def lasting(phases: Phases) -> dict[str, int]:
    """What a device holds from step to step, in bytes by item.

    Args:
        phases: Bytes by item on the device, at each moment of the training.
    """
    return {item: size for item, size in phases[FORWARD_BACKWARD].items() if item not in (ACTIVATIONS, KEPT)}


def bytes_of(config: RunConfig, architecture: Architecture, step_shape: StepShape, batch: int) -> int:
    """Bytes that a validation holds beside model, gradients and optimizer states: for losses or for answers.

    Args:
        config: The run.
        architecture: Its model.
        step_shape: What one forward and backward pass of the training computes.
        batch: Rows per forward pass.
    """
    layer = measure(architecture, step_shape).one_layer.all // step_shape.micro_batch
    return batch * (held_by_rows(config, architecture, step_shape.precision) + layer)


def held_by_rows(config: RunConfig, architecture: Architecture, precision: Precision) -> int:
    """Bytes that one row holds besides the layer being computed: logits of a measured row, or the cache of an answer.

    Args:
        config: The run.
        architecture: Its model.
        precision: Precision of the products.
    """
    return held_by_row(architecture, precision, config.data.max_length, config.evaluation.max_new_tokens)


def held_by_row(architecture: Architecture, precision: Precision, tokens: int, new_tokens: int) -> int:
    """Bytes that a row holds besides the layer being computed: logits of a measured row, or the cache of an answer.

    Args:
        architecture: The model.
        precision: Precision of the products.
        tokens: Tokens of the row, or of the question.
        new_tokens: Tokens of the longest answer.
    """
    width = _WIDTHS[precision]
    loss = (width + _COPIES) * tokens * architecture.outputs
    if architecture.labels:  # which answers with a class, and needs no cache for that
        return loss
    return max(loss, cache_of_row(architecture, precision, tokens + new_tokens))


def cache_of_row(architecture: Architecture, precision: Precision, tokens: int) -> int:
    """Bytes of the keys and values of one row while it is answered.

    Args:
        architecture: The model.
        precision: Precision of the products.
        tokens: Tokens of the question and its answer.
    """
    return _WIDTHS[precision] * tokens * architecture.cached_per_token

"""Memory of a validation, which uses the model where it trains, with as many rows as need no more than training."""

from thriftune.config import RunConfig
from thriftune.hardware import Precision
from thriftune.models.architecture import Architecture
from thriftune.strategies.memory.activations import StepShape, measure

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
# Bytes per logit, beside the logits: their fp32 copy without the last position, and cross-entropy's result from it.
_COPIES = 4 + 4


def batch_of(config: RunConfig, architecture: Architecture, step_shape: StepShape) -> int:
    """Rows per forward pass of a validation: `evaluation.batch`, or fewer where that needs more memory than training.

    Args:
        config: The run.
        architecture: Its model.
        step_shape: What one forward and backward pass of the training computes.
    """
    limit = measure(architecture, step_shape).whole().all
    return max(1, min(config.evaluation.batch, limit // bytes_of(config, architecture, step_shape, 1)))


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
    width, tokens = _WIDTHS[precision], config.data.max_length
    loss = (width + _COPIES) * tokens * architecture.vocabulary
    answer = width * (tokens + config.evaluation.max_new_tokens) * architecture.cached_per_token
    return max(loss, answer)

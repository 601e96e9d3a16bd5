"""Memory of merging an adapter into its base model: that of one weight, unless the model is held as a whole."""

import math

from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.methods.adapters import adapter_parameters, fused_adapters
from thriftune.models import saving
from thriftune.models.architecture import Architecture, layer_of
from thriftune.models.merging.comparing import COMPARED_OPERATIONS, ROWS_AT_ONCE
from thriftune.models.merging.shards import is_converted
from thriftune.models.next_tokens import KEPT_BYTES, OUTPUT_BYTES

_GIB = 2**30
_HALF, _FULL = 2, 4  # bytes per parameter
# Bytes for each number of the weight that is merged: it, the adapter's product and the same scaled, in fp32, and the
# sum as it is written. DoRA adds the sum, its norm and the sum scaled. Both as measured: docs/merging.md.
_MERGED, _MERGED_BY_DORA = 4 * _FULL, 7 * _FULL
# Bytes for each number of a weight that is only computed with or copied: in fp32, and as its file has it.
_USED = _FULL + _HALF
# Bytes for each number of the adapter: as its file has it, and as peft holds it.
_ADAPTER = 2 * _FULL
# Activations of a token that are in memory together, in widths of the model's largest matrix: gate, up and product of
# a layer, and the residual stream.
_ACTIVATIONS = 4
# Factor: a model held as a whole is merged layer by layer in fp32, and its largest weight computes in fp32.
_WHOLE = 1.2


def merging_gib(config: RunConfig, architecture: Architecture) -> float:
    """GiB that merging the adapter of a run takes, or would take, beside Python and its libraries.

    Args:
        config: The run.
        architecture: The base model's.

    Returns:
        The GiB; 0 for a method whose results cannot be merged.
    """
    if not METHODS[config.method].merges:
        return 0.0
    lora, comparing = config.lora_or_default, _comparing(config.data.max_length, architecture)
    if is_converted(architecture.skeleton) or fused_adapters(lora, architecture):
        return (_WHOLE * saving.bytes_at_most(config) * architecture.parameters + comparing) / _GIB
    adapters = adapter_parameters(architecture, lora)
    weights = [math.prod(architecture.shapes.get(f"{name}.weight", ())) for name in adapters]
    merged = (_MERGED_BY_DORA if lora.variant == "dora" else _MERGED) * max(weights)
    largest = max(merged, _USED * architecture.largest_parameter)
    return (_ADAPTER * sum(adapters.values()) + largest + comparing) / _GIB


def _comparing(longest: int, architecture: Architecture) -> float:
    """Bytes that comparing on held-out rows takes: what is kept of the adapter's outputs, and a batch.

    Args:
        longest: Longest row, in tokens.
        architecture: The base model's.
    """
    output = _FULL * architecture.vocabulary
    affordable = COMPARED_OPERATIONS / (2 * architecture.parameters)
    tokens = max(longest, min(OUTPUT_BYTES / output, affordable, ROWS_AT_ONCE * longest))
    kept = min(KEPT_BYTES, output * saving.ROWS * longest)
    widest = max(max(shape) for name, shape in architecture.shapes.items() if shape and layer_of(name))
    # The loss of a row needs its outputs once more.
    return kept + output * (tokens + longest) + _FULL * _ACTIVATIONS * widest * tokens

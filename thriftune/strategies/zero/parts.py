"""The weights of a model as ZeRO divides them: what trains, and what is frozen."""

import math
from dataclasses import dataclass
from functools import lru_cache

from thriftune.methods import method_of
from thriftune.models.architecture import Architecture, layer_of
from thriftune.models.quantization import quantized_layers
from thriftune.strategies.memory.activations import StepShape

WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Parts:
    """The weights of a model.

    Attributes:
        trained: Number of parameters that train.
        largest_trained: The most that one module has of them; of the largest parameter where every weight trains.
        frozen: Bytes of the weights that do not train.
        constants: Bytes of the constants of weights in 4 bits, which every rank holds.
        sizes: Bytes of each weight of the base model when it is gathered.
        layer: Bytes of the largest decoder layer when it is gathered.
    """

    trained: int
    largest_trained: int
    frozen: int
    constants: int
    sizes: tuple[int, ...]
    layer: int

    @property
    def largest(self) -> int:
        """Bytes of the largest weight."""
        return max(self.sizes)


@lru_cache(maxsize=256)
def parts_of(architecture: Architecture, step_shape: StepShape) -> Parts:
    """Divide the weights of a model into those that train and those that do not.

    Args:
        architecture: The model.
        step_shape: What trains, and the precision.
    """
    sizes, layers, in_four_bits = {}, dict[str, int](), 0
    quantized = quantized_layers(architecture) if step_shape.four_bit else frozenset()
    for name, shape in architecture.shapes.items():
        module, _, kind = name.rpartition(".")
        is_quantized = kind == "weight" and module in quantized
        sizes[name] = math.prod(shape) // 2 if is_quantized else WIDTHS[step_shape.precision] * math.prod(shape)
        in_four_bits += math.prod(shape) if is_quantized else 0
        if layer := layer_of(name):
            layers[layer] = layers.get(layer, 0) + sizes[name]
    method = method_of(step_shape.tuned)
    trained = method.trained_parts(step_shape.tuned, architecture)
    of_base = WIDTHS[step_shape.precision] * sum(trained.values()) if method.facts.trains_weights else 0
    return Parts(
        trained=sum(trained.values()),
        largest_trained=architecture.largest_parameter if step_shape.tuned is None else max(trained.values()),
        frozen=max(0, sum(sizes.values()) - of_base),
        constants=int(step_shape.four_bit.constants * in_four_bits) if step_shape.four_bit else 0,
        sizes=tuple(sizes.values()),
        layer=max(layers.values(), default=0),
    )

"""The product with a weight in 4 bits that is whole only while its layer computes.

bitsandbytes (0.50) keeps a view of the weight from the forward pass to the backward pass. Under DeepSpeed and FSDP2
that is a view of what was gathered for this layer: without recomputation every rank would hold the whole base by the
end of the forward pass, though no parameter shows it. Here the layer is kept instead, whose weight is gathered again
before its backward pass. Remove when bitsandbytes keeps the parameter.
"""

from typing import Any

import torch
from bitsandbytes.autograd._functions import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit


class Product(torch.autograd.Function):
    """`inputs @ weight.T` with the weight of a layer in 4 bits, which does not train."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Linear4bit) -> torch.Tensor:
        """Multiply as bitsandbytes does.

        Args:
            ctx: Keeps the layer for the backward pass.
            inputs: Tensor of shape [..., in].
            layer: The layer, whose weight is whole at this moment.

        Returns:
            Tensor of shape [..., out].
        """
        ctx.layer, constants = layer, layer.quant_state
        assert constants is not None
        with torch.no_grad():
            product: torch.Tensor = matmul_4bit(inputs, layer.weight.data, quant_state=constants)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of the inputs, with the weight that is whole again."""
        layer, (gradient,) = ctx.layer, gradients
        weight = dequantize_4bit(layer.weight.data, layer.quant_state)
        return torch.matmul(gradient, weight.to(gradient.dtype)), None


def forward(layer: Linear4bit, inputs: torch.Tensor) -> torch.Tensor:
    """In place of `Linear4bit.forward`, with the same conversions: to the compute type, and of the result back.

    Args:
        layer: The layer.
        inputs: Tensor of shape [..., in].

    Returns:
        Tensor of shape [..., out].
    """
    converted = inputs if layer.compute_dtype is None else inputs.to(layer.compute_dtype)
    result: torch.Tensor = Product.apply(converted, layer)
    if layer.bias is not None:
        result = result + layer.bias.to(result.dtype)
    return result.to(inputs.dtype)

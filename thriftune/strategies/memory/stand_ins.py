"""What stands, on torch's meta device, for the operations that it computes in another way than a real device.

Each keeps for its backward pass what the real one keeps, and tells how much work that one is.
"""

from collections.abc import Iterable
from typing import Any

import torch

from thriftune.strategies.memory.operations import OF_WEIGHTS, Operations, precision_of, product

# Those who count now: what an operation here does is not seen by a dispatch mode.
told: list[Operations] = []


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """Attention of queries, keys and values [rows, heads, tokens, width], in place of torch's own."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")  # torch turns it into a bias
    result: torch.Tensor = _Attention.apply(query, key, value, attn_mask)
    return result


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output and one number per query, but no scores.

    Source: FlashAttention (arXiv 2205.14135), section 3.1; torch's memory-efficient CUDA kernel and its CPU kernel keep
    the same.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        rows, heads, tokens, _ = query.shape
        ctx.flops = _attention_flops(query, key, value, causal=bias is None)
        # [rows, tokens, heads, width] in memory, so that the projection after it needs no copy.
        output = query.new_empty((rows, tokens, heads, value.shape[-1])).transpose(1, 2)
        ctx.save_for_backward(query, key, value, bias, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        _tell(ctx.flops, [query, key, value, *([bias] if bias is not None else [])], [output])
        return output

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        query, key, value, bias, output = ctx.saved_tensors[:5]
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        # Scores are computed again, and four products make the gradients: five products where the forward pass has two.
        inputs = [query, key, value, output, output, *([bias] if bias is not None else [])]
        _tell(5 * ctx.flops // 2, inputs, gradients)
        return *gradients, None


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> int:
    """Scores and their product with the values: all of them with a mask, the half that is needed without."""
    rows, heads, tokens, width = query.shape
    flops = product(rows * heads * tokens, (key.shape[-2], width + value.shape[-1]))
    return flops // 2 if causal else flops


def grouped_product(inputs: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor, **_: Any) -> torch.Tensor:
    """Multiply rows [tokens, in], sorted by expert, with the weights [experts, in, out] of each expert: [tokens, out].

    In fp16, which is used on GPUs without bf16, transformers loops over the experts itself, since torch's kernel needs
    compute capability 8; its backward pass makes the gradient of all experts even where they are frozen.

    Source: transformers 5.23, integrations/moe.py, the condition for using the grouped product.
    """
    from transformers.integrations import moe  # noqa: F401  # registers the operator

    if weights.dtype == torch.float16:
        return torch.ops.transformers.grouped_mm_fallback(inputs, weights, offs)  # type: ignore[no-any-return]
    result: torch.Tensor = _GroupedProduct.apply(inputs, weights)
    return result


class _GroupedProduct(torch.autograd.Function):
    """What torch's grouped product keeps: its inputs, and in the backward pass the gradients that are needed."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs, weights)
        output = inputs.new_empty((inputs.shape[0], weights.shape[2]))
        _tell(product(inputs.shape[0], weights.shape[1:]), [inputs, weights], [output])
        return output

    @staticmethod
    def backward(ctx: Any, *received: torch.Tensor) -> Any:
        inputs, weights = ctx.saved_tensors  # which recomputation gives once
        gradients = tuple(
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip((inputs, weights), ctx.needs_input_grad, strict=True)
        )
        for other, gradient in zip((weights, inputs), gradients, strict=True):
            if gradient is not None:
                _tell(product(inputs.shape[0], weights.shape[1:]), [received[0], other], [gradient])
        return gradients


class FourBitProduct(torch.autograd.Function):
    """What bitsandbytes' product with a 4-bit weight keeps: nothing. While it works it holds the weight in 16 bits.

    Source: `bitsandbytes.autograd._functions.MatMul4Bit`, 0.50.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, features: tuple[int, int]) -> torch.Tensor:
        """Inputs [..., in_features] to outputs [..., out_features]; `features` is (out, in)."""
        ctx.features = features
        weight = inputs.new_empty(features)
        _tell_dequantized(weight)
        output = inputs.new_empty((*inputs.shape[:-1], features[0]))
        _tell(product(inputs.numel() // features[1], features), [inputs, weight], [output])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradient of the inputs only: the weight is frozen."""
        gradient = gradients[0]
        weight = gradient.new_empty(ctx.features)
        _tell_dequantized(weight)
        result = gradient.new_empty((*gradient.shape[:-1], ctx.features[1]))
        _tell(product(gradient.numel() // ctx.features[0], ctx.features), [gradient, weight], [result])
        return result, None


def _tell(flops: int, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]) -> None:
    """Count a matrix product, in the precision of what it makes."""
    outputs = list(outputs)
    for operations in told:
        operations.count(precision_of(outputs[0]), flops, inputs, outputs)


def _tell_dequantized(weight: torch.Tensor) -> None:
    """Count the reading of a weight in 4 bits and the writing of it in another type; the absmax is a hundredth."""
    for operations in told:
        operations.count(OF_WEIGHTS, 0, [], [weight], beside=weight.numel() // 2)

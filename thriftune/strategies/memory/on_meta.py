"""The model that a training prepares, on torch's meta device, where it has shapes and no values."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from thriftune.hardware import torch_dtype
from thriftune.methods import method_of
from thriftune.methods.adapters import prepare_four_bit
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit, replace_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from thriftune.strategies.memory.activations import StepShape
    from thriftune.strategies.memory.tracing import RealDevice


@contextmanager
def _uninitialized() -> Iterator[None]:
    """Give new weights no values, which on the meta device they do not have, and which took a third of a trace."""
    from torch.nn import init

    names = ("kaiming_uniform_", "uniform_", "normal_", "zeros_", "ones_")
    with ExitStack() as patches:
        for name in names:
            patches.enter_context(mock.patch.object(init, name, _as_it_is))
        yield


def _as_it_is(tensor: "torch.Tensor", *_: Any, **__: Any) -> "torch.Tensor":
    return tensor


def trainable(architecture: Architecture, step_shape: "StepShape", layers: int, device: "RealDevice") -> Any:
    """The model as a training prepares it, on the meta device; each gradient of a weight is dropped at once.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.
        layers: Number of decoder layers.
        device: The device that the pass is traced for.
    """
    import torch

    dtype = torch_dtype(step_shape.precision)
    held = torch.float32 if step_shape.autocast and step_shape.tuned is None else dtype
    model: Any = architecture.on_meta(held, layers)
    model.config.use_cache = False
    if step_shape.four_bit:
        _quantize(model, step_shape.four_bit, dtype)
        model = prepare_four_bit(model, gradient_checkpointing=False)
    with _uninitialized():
        model = method_of(step_shape.tuned).put_on(model, step_shape.tuned, architecture)
    if step_shape.in_precision:
        _convert(model, dtype)
    if step_shape.autocast:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if step_shape.gradient_checkpointing:
        # torch leaves a function mode when the backward pass starts, so layers are computed again in a context of ours.
        contexts = partial(_recomputation, device.autocast)
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return model


def _convert(model: Any, dtype: "torch.dtype") -> None:
    """Hold the adapters, and what `prepare_four_bit` turned into fp32, in a type."""
    for parameter in model.parameters():
        if type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(dtype)


def _recomputation(autocast: "torch.dtype | None") -> tuple[Any, Any]:
    """The contexts for a layer's first computation and for its second."""
    from thriftune.strategies.memory.tracing import RealDevice

    return nullcontext(), RealDevice(autocast)


def _drop_gradient(parameter: "torch.Tensor") -> None:
    parameter.grad = None


def _quantize(model: "PreTrainedModel", four_bit: FourBit, dtype: "torch.dtype") -> None:
    """Put bitsandbytes' 4-bit layers into a model on the meta device, with a product that needs no data."""
    from bitsandbytes.nn.modules import Linear4bit

    from thriftune.strategies.memory.stand_ins import FourBitProduct

    replace_layers(model, dtype, four_bit)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            replaced: Any = module
            replaced.forward = partial(_four_bit_forward, module, FourBitProduct, dtype)


def _four_bit_forward(module: Any, product: Any, dtype: "torch.dtype", inputs: "torch.Tensor") -> Any:
    """Like `bitsandbytes.nn.Linear4bit.forward`: convert inputs [..., in] to the compute type, and the result back."""
    result = product.apply(inputs.to(dtype), (module.out_features, module.in_features))
    if module.bias is not None:
        result = result + module.bias.to(dtype)
    return result.to(inputs.dtype)

"""Letting a model compute with other weights than it holds, one module at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Gives the weight of a parameter, by its name and itself.
WeightOf = Callable[[str, "torch.nn.Parameter"], "torch.Tensor"]


@contextmanager
def computing_with(model: "torch.nn.Module", weight_of: WeightOf) -> Iterator[None]:
    """Let a model compute with other weights than it holds: each module has them only while it runs.

    So the memory of one module is all that is needed besides, in every ZeRO stage and with every kind of offload.

    Args:
        model: The model, as DeepSpeed holds it; every rank runs it alike.
        weight_of: Gives the weight, of the parameter's whole shape, in the type to compute in.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    held: dict[tuple[torch.nn.Module, str], torch.Tensor] = {}

    def put_in(module: "torch.nn.Module", *_: Any) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            weight = weight_of(names[parameter], parameter)
            held[module, key] = parameter.data
            parameter.data = weight

    def put_back(module: "torch.nn.Module", *_: Any) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            parameter.data = held.pop((module, key))

    hooks = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            # After DeepSpeed has gathered the module's weights, and before it lets go of them again.
            hooks += [module.register_forward_pre_hook(put_in), module.register_forward_hook(put_back, prepend=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for (module, key), weight in held.items():  # of modules that failed
            module.get_parameter(key).data = weight

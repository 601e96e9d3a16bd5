"""Computing with weights other than a model's own, one module at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Returns the weight to use for a parameter, given its name and the parameter.
WeightOf = Callable[[str, "torch.nn.Parameter"], "torch.Tensor"]


@contextmanager
def computing_with(model: "torch.nn.Module", weight_of: WeightOf) -> Iterator[None]:
    """Let a model compute with other weights than its own: each module has them only while it runs.

    So only the memory of one more module is needed, in every ZeRO stage and with every kind of offload.

    Args:
        model: The model, as DeepSpeed holds it; every rank runs it in the same way.
        weight_of: Returns the weight, in the parameter's full shape and in the type to compute in.
    """
    # By the place of a parameter, not by itself: FSDP puts another one there while a module runs.
    names: dict[int, str] = {}
    placed: dict[tuple[torch.nn.Module, str], str] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            # A tied weight has the first of its names.
            placed[module, key] = names.setdefault(id(parameter), f"{path}.{key}" if path else key)
    held: dict[tuple[torch.nn.Module, str], torch.Tensor] = {}

    def put_in(module: "torch.nn.Module", *_: Any) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            weight = weight_of(placed[module, key], parameter)
            held[module, key] = parameter.data
            parameter.data = weight

    def put_back(module: "torch.nn.Module", *_: Any) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            parameter.data = held.pop((module, key))

    hooks = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            # After DeepSpeed or FSDP has gathered the module's weights, and before it releases them again.
            hooks += [module.register_forward_pre_hook(put_in), module.register_forward_hook(put_back, prepend=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for (module, key), weight in held.items():  # of modules that raised an error
            module.get_parameter(key).data = weight

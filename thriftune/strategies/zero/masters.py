"""The fp32 master weights that DeepSpeed steps: what was learnt, of which the weights it computes with are a copy.

In 16 bits that copy is rounded after every step. What is measured and saved here goes out from the masters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WeightOf = Callable[[str, "torch.nn.Parameter"], "torch.Tensor"]


def masters_of(engine: Any) -> WeightOf:
    """What gives the whole fp32 weight of a parameter, by name and parameter. Collective: every rank asks alike.

    Args:
        engine: DeepSpeed's, of any stage, after training.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    undivided = _undivided_masters(engine.optimizer)

    def master(_: str, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        if parameter in undivided:
            return undivided[parameter].detach()
        found: torch.Tensor | None = safe_get_full_fp32_param(parameter)
        if found is not None:
            return found.detach()
        # Not stepped by ZeRO: frozen, or plain AdamW of stage 0 in fp32. What is computed with is all there is.
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            return parameter.detach().float().clone()

    return master


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


def _undivided_masters(optimizer: Any) -> "dict[torch.nn.Parameter, torch.Tensor]":
    """Those of stage 0 in 16 bits, which DeepSpeed's accessor does not know.

    FP16_UnfusedOptimizer holds them in lists beside the weights; of the other optimizers none has both lists.
    """
    halves, masters = getattr(optimizer, "fp16_groups", None), getattr(optimizer, "fp32_groups", None)
    if halves is None or masters is None:
        return {}
    return {
        half: master
        for group, those in zip(halves, masters, strict=True)
        for half, master in zip(group, those, strict=True)
    }

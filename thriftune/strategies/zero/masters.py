"""The fp32 master weights, which DeepSpeed's optimizer updates; the model computes with a copy of them.

In 16 bits that copy is rounded after every step. Losses are measured, and weights saved, from the masters.
"""

from typing import TYPE_CHECKING, Any

from thriftune.models.substitution import WeightOf

if TYPE_CHECKING:
    import torch


def masters_of(engine: Any) -> WeightOf:
    """A function that gives the whole fp32 weight of a parameter. Collective: every rank calls it for the same one.

    Args:
        engine: DeepSpeed's engine, of any ZeRO stage, after training.
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
        # ZeRO has no master of it: it is frozen, or stage 0 trains it in fp32. There is only the weight itself.
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            return parameter.detach().float().clone()

    return master


def _undivided_masters(optimizer: Any) -> "dict[torch.nn.Parameter, torch.Tensor]":
    """The master weights of stage 0 in 16 bits, which DeepSpeed's accessor does not find.

    FP16_UnfusedOptimizer holds them in lists beside the weights; no other optimizer has both lists.
    """
    halves, masters = getattr(optimizer, "fp16_groups", None), getattr(optimizer, "fp32_groups", None)
    if halves is None or masters is None:
        return {}
    return {
        half: master
        for group, those in zip(halves, masters, strict=True)
        for half, master in zip(group, those, strict=True)
    }

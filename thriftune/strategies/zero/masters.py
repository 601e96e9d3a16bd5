"""The fp32 master weights that DeepSpeed steps: what was learnt, of which the weights it computes with are a copy.

In 16 bits that copy is rounded after every step. What is measured and saved here goes out from the masters.
"""

from typing import TYPE_CHECKING, Any

from thriftune.models.substitution import WeightOf

if TYPE_CHECKING:
    import torch


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

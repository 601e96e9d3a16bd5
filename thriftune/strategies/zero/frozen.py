"""Checkpoints of ZeRO without the weights that do not train: every attempt loads those from the base model.

transformers (5.23) leaves frozen weights out for peft's models only, and would refuse a checkpoint that lacks those of
a model that trains in part.
"""

from functools import partial
from typing import Any


def leave_out_frozen(engine: Any) -> None:
    """Have DeepSpeed write only what trains, with its optimizer states.

    Args:
        engine: DeepSpeed's engine, which is changed; nothing happens the second time.
    """
    if not isinstance(engine.save_checkpoint, partial):
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def may_lack_frozen(model: Any) -> None:
    """Let a model load a state without the weights that do not train, which it has already.

    Args:
        model: The model as DeepSpeed gets it. Other missing weights are still refused.
    """

    def forget_frozen(module: Any, found: Any) -> None:
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        found.missing_keys[:] = [name for name in found.missing_keys if name not in frozen]

    model.register_load_state_dict_post_hook(forget_frozen)

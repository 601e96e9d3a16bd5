"""The trained weights of a model, gathered on rank 0 in the form they are saved in."""

from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.hardware import Precision, torch_dtype
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.substitution import WeightOf

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def gathered(
    trainer: "Trainer", master: WeightOf, dtype: Precision, rounding: RoundingMode, seed: int
) -> "dict[str, torch.Tensor]":
    """Trained weights and buffers by name, on rank 0. Collective: every rank calls it.

    Weights that do not train are neither gathered nor returned: the base model has them.

    Args:
        trainer: The trainer, after training.
        master: Function that gives the whole weight of a parameter.
        dtype: Type to save them in.
        rounding: How to round them to it.
        seed: Seed of stochastic rounding.
    """
    import torch

    model: Any = trainer.model
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Tied weights (an output head that is the embedding) are stored once.
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    state: dict[str, torch.Tensor] = {}
    for key, tensor in _to_save(model).items():
        is_frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        if key in tied or is_frozen:
            continue
        if isinstance(tensor, torch.nn.Parameter):
            name = names[tensor]
            whole = rounded(master(name, tensor), torch_dtype(dtype), rounding, name, seed)
        else:  # a buffer: the model computes with it as it is
            whole = tensor
        if distributed.current_rank().is_main:
            state[key] = whole.cpu()
    return state


def _to_save(model: Any) -> "dict[str, torch.Tensor]":
    """Everything of a model; of one with adapters what trains, as its base is neither gathered nor saved."""
    if hasattr(model, "peft_config"):
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    return whole

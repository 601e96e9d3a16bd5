"""First values of low-rank adapters other than the default: from the weights that they are on, or from rows.

PiSSA and OLoRA move a part of each weight of the base model into its adapter. What is saved is the difference between
the trained and the first adapter, a plain adapter of twice the rank on the unchanged base. So the first adapter is kept
with the model and in its checkpoints; a training that resumes takes it from there, and not from another decomposition.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config import LoraConfig
from thriftune.config.method_rules import TAKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ADAPTER = "default"
INITIAL = "initial"  # name of the first adapter while it is subtracted
# Of a model whose adapters took a part of its weights: the first adapter, by the names in an adapter's file.
_HELD = "initial_adapter"
# EVA's batches are repeated until the directions stay the same; with more of them, more rows decide.
EVA_BATCHES = 8


def from_weights(model: Any, lora: LoraConfig) -> None:
    """Give new adapters the first values that a run asks for, as far as they do not depend on rows.

    Args:
        model: A model with new adapters of peft's default values. PiSSA and OLoRA change the weights under them.
        lora: The LoRA section.

    Source: PiSSA (arXiv 2404.02948), section 3; OLoRA (arXiv 2406.01775), section 3; orthogonal values as in
        https://datta0.github.io/posts/rethink-lora-init, which peft has too, but not on a base in 4 bits.
    """
    import torch

    values = {"pissa": _principal, "olora": _triangular, "orthogonal": _orthogonal}.get(lora.init)
    if values is None:
        return
    logger.info("First values of the adapters: %s", lora.init)
    with torch.no_grad():
        for _, layer in _layers(model):
            first, second = values(layer)
            layer.lora_A[ADAPTER].weight.copy_(first)
            layer.lora_B[ADAPTER].weight.copy_(second)
    if lora.init in TAKING:
        _take_out(model, _state(model))


def from_rows(model: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """Give new adapters the directions in which the inputs of their modules vary most (EVA).

    Every adapter keeps its rank: the plan counts them before there are inputs.

    Args:
        model: A model with new adapters.
        batches: Collated rows, the same on every rank.

    Source: EVA (arXiv 2410.07170), section 3.
    """
    from peft import EvaConfig, initialize_lora_eva_weights

    logger.info("First values of the adapters: eva, from %d batches", len(batches))
    config = model.peft_config[ADAPTER]
    targets, config.eva_config, config.init_lora_weights = config.target_modules, EvaConfig(rho=1.0), "eva"
    initialize_lora_eva_weights(model, list(batches), gather_distributed_inputs=False, show_progress_bar=False)
    config.target_modules, config.init_lora_weights, config.eva_config = targets, True, None


def initial_adapter(model: Any) -> "dict[str, torch.Tensor]":
    """The first adapter of a model whose weights it was taken out of, by the names in its file; else nothing.

    Args:
        model: The model with adapters.
    """
    held: dict[str, torch.Tensor] = getattr(model, _HELD, {})
    return held


def resume_with(model: Any, initial: "Mapping[str, torch.Tensor]") -> None:
    """Take the first adapter of an earlier attempt out of the weights of the base model.

    Args:
        model: The model with adapters, on an unchanged base; it stays as it is if this was done before.
        initial: What `initial_adapter` gave then.
    """
    if initial and not initial_adapter(model):
        _take_out(model, initial)


def saved_as_difference(initial: "Mapping[str, torch.Tensor]", scratch: Path) -> dict[str, Any]:
    """The options with which peft saves the difference from the first adapter; none where there was no first one.

    Args:
        initial: What `initial_adapter` gave.
        scratch: Folder that may be written to.
    """
    from safetensors.torch import save_file

    if not initial:
        return {}
    folder = scratch / INITIAL
    folder.mkdir()
    save_file(dict(initial), folder / "adapter_model.safetensors")
    return {"path_initial_model_for_weight_conversion": str(folder)}


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Every module with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def _state(model: Any) -> "dict[str, torch.Tensor]":
    """The adapters by the names in their file, on the host."""
    names = ((name, layer, part) for name, layer in _layers(model) for part in ("lora_A", "lora_B"))
    return {
        f"{name}.{part}.weight": getattr(layer, part)[ADAPTER].weight.detach().cpu().clone()
        for name, layer, part in names
    }


def _take_out(model: Any, initial: "Mapping[str, torch.Tensor]") -> None:
    """Subtract adapters from the weights that they are on, and note them on the model."""
    import torch

    with torch.no_grad():
        for name, layer in _layers(model):
            weight: Any = layer.get_base_layer().weight
            first, second = (initial[f"{name}.{part}.weight"].to(weight.device) for part in ("lora_A", "lora_B"))
            change = layer.scaling[ADAPTER] * second @ first
            weight.copy_(weight.float() - (change.T if layer.fan_in_fan_out else change))
    setattr(model, _HELD, dict(initial))


def _weight(layer: Any) -> "torch.Tensor":
    """The weight under an adapter, [out, in]."""
    weight: torch.Tensor = layer.get_base_layer().weight.float()
    return weight.T if layer.fan_in_fan_out else weight


def _principal(layer: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """PiSSA: the principal singular vectors, [rank, in] and [out, rank]."""
    import torch

    rank = layer.r[ADAPTER]
    left, values, right = torch.linalg.svd(_weight(layer), full_matrices=False)
    root = torch.sqrt(values[:rank] / layer.scaling[ADAPTER])
    return root[:, None] * right[:rank], left[:, :rank] * root


def _triangular(layer: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """OLoRA: the first columns of Q and the first rows of R, [rank, in] and [out, rank]."""
    import torch

    rank = layer.r[ADAPTER]
    orthonormal, triangular = torch.linalg.qr(_weight(layer))
    return triangular[:rank], orthonormal[:, :rank]


def _orthogonal(layer: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Random matrices with orthogonal row spaces, so that their product is zero, [rank, in] and [out, rank]."""
    import torch

    rank, size = layer.r[ADAPTER], 0.1
    basis, _ = torch.linalg.qr(torch.randn(rank, rank))
    first = (torch.randn(layer.in_features, rank // 2) @ basis[0::2]).T
    return size * first, size * (torch.randn(layer.out_features, rank // 2) @ basis[1::2])

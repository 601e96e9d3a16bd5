"""Low-rank adapters: which modules they attach to, and their configuration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from thriftune.config import LoraConfig
from thriftune.config.method_rules import TAKING
from thriftune.errors import ConfigError, in_a_line
from thriftune.models import classifier
from thriftune.models.adapter_weights import is_target
from thriftune.models.architecture import Architecture, layer_of

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from transformers import PreTrainedModel

DROPOUT = 0.05  # the default of a run; QLoRA (arXiv 2305.14314), appendix B
_AS_A_WHOLE = ".modules_to_save.default"  # in the names of modules that train as a whole
# Attribute of a base model that a strategy maps and shards: its weights are in the files, and each is converted alone.
KEEPS_TYPES = "keeps_types"
ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the output head


def resolved(lora: LoraConfig, architecture: Architecture) -> LoraConfig:
    """The adapters that a run gets on an architecture, with what its file leaves open decided.

    Args:
        lora: The LoRA section; its targets exist in the architecture.
        architecture: The base model's.

    Returns:
        The section with a dropout; and with the names of its targets, where "every linear layer" needs exceptions.

    Raises:
        ConfigError: peft refuses the adapters.
    """
    decided = lora.model_copy(update={"target_modules": _targets(lora, architecture)})
    if lora.dropout is not None:
        return decided
    return decided.model_copy(update={"dropout": 0.0 if fused_adapters(lora, architecture) else dropout_of(lora)})


def dropout_of(lora: LoraConfig) -> float:
    """The dropout of adapters: the file's, or the default for their first values.

    Adapters on fused experts have none, whatever this says; a file that asks for some there is refused.

    Args:
        lora: The LoRA section.
    """
    default = 0.0 if lora.init in TAKING else DROPOUT
    return default if lora.dropout is None else lora.dropout


def _targets(lora: LoraConfig, architecture: Architecture) -> tuple[str, ...] | None:
    """Names of the targets; None for all linear layers, unless the class of some is linear but their use is not."""
    if lora.target_modules is not None or not architecture.odd_layers:
        return lora.target_modules
    odd = {name.rpartition(".")[2] for name in architecture.odd_layers}
    short = {name: name.rpartition(".")[2] for name in architecture.linear_shapes}
    return tuple(sorted({name if last in odd else last for name, last in short.items()}))


def fused_adapters(lora: LoraConfig, architecture: Architecture) -> bool:
    """Whether peft would put adapters on parameters instead of layers: on the fused experts of a mixture."""
    return any(is_fused for _, is_fused in _adapters(architecture, lora).values())


def adapter_parameters(architecture: Architecture, lora: LoraConfig) -> dict[str, int]:
    """Number of parameters of the adapter on each module, by the module's name.

    Counted in the model that peft makes: for some architectures peft also puts adapters on the experts, which are not
    linear layers but are named like them.

    Args:
        architecture: The base model's.
        lora: The LoRA section.

    Raises:
        ConfigError: peft refuses the adapters.

    Source: LoRA (arXiv 2106.09685), section 4.1: rank x (in + out) for each layer.
    """
    return {name: count for name, (count, _) in _adapters(architecture, lora).items()}


@lru_cache(maxsize=64)
def _adapters(architecture: Architecture, lora: LoraConfig) -> dict[str, tuple[int, bool]]:
    """Parameters that train on or in each module, and whether they are on a parameter instead of a layer.

    Counted on a model with just enough layers to have one of every kind: peft takes seconds for a model of eighty. But
    on all layers if something else than adapters trains, or if layers of a kind may differ.
    """
    by_number = any(character.isdigit() for pattern in lora.rank_patterns for character in pattern.pattern)
    if lora.modules_to_save or lora.bias != "none" or by_number:
        return _counted(architecture, lora, None)
    first = architecture.first_of_kind
    on_few = _counted(architecture, without_layer_numbers(lora), max(first, default=0) + 1)
    found = {}
    for name, adapter in on_few.items():
        layer = layer_of(name)
        stem, _, number = layer.rpartition(".")
        alike = [i for i, j in enumerate(first) if layer and j == int(number)]
        for other in [f"{stem}.{i}{name.removeprefix(layer)}" for i in alike] or [name]:
            is_head = bool(architecture.labels) and f"{other}.weight" == architecture.head_name
            if adapter[1] or is_head or is_target(other, lora.target_modules):
                found[other] = adapter
    return found


def _counted(architecture: Architecture, lora: LoraConfig, layers: int | None) -> dict[str, tuple[int, bool]]:
    from peft.tuners.lora.layer import ParamWrapper

    model = _on_meta(architecture, lora, layers)
    found: dict[str, tuple[int, bool]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        wrapper, is_adapter, _ = name.partition(".lora_")
        if not is_adapter:  # a bias, or a part of a module that trains as a whole
            wrapper = name.rpartition(".")[0]
        module = wrapper.removeprefix("base_model.model.").replace(".base_layer", "").replace(_AS_A_WHOLE, "")
        count, is_fused = found.get(module, (0, False))
        is_fused |= isinstance(model.get_submodule(wrapper), ParamWrapper)
        found[module] = (count + parameter.numel(), is_fused)
    return found


def _on_meta(architecture: Architecture, lora: LoraConfig, layers: int | None) -> Any:
    """A model on the meta device with the adapters that peft puts on it."""
    import torch
    from peft import get_peft_model

    asked = lora.model_copy(update={"target_modules": _targets(lora, architecture), "dropout": 0.0})
    if layers is not None:
        asked = without_layer_numbers(asked)
    try:
        on_meta = architecture.on_meta(torch.bfloat16, layers=layers)
        return get_peft_model(on_meta, peft_config(asked, architecture.labels))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError.single(
            "lora.target_modules",
            ", ".join(lora.target_modules or ()) or "every linear layer",
            f"peft cannot put these adapters on {architecture.name} ({in_a_line(error)}).",
            "Name the modules to adapt, such as q_proj, k_proj, v_proj and o_proj.",
            code="lora-refused",
        ) from error


def without_layer_numbers(lora: LoraConfig) -> LoraConfig:
    """The same adapters without layer numbers in the names of their targets, for a model of fewer layers."""
    targets = lora.target_modules and tuple(sorted({name.rpartition(".")[2] for name in lora.target_modules}))
    return lora.model_copy(update={"target_modules": targets})


def prepare_four_bit(model: "PreTrainedModel", *, gradient_checkpointing: bool) -> "PreTrainedModel":
    """Freeze a base model in 4 bits, and convert its other weights to fp32, unless it is marked by `KEEPS_TYPES`.

    Args:
        model: The base model.
        gradient_checkpointing: Whether to recompute activations in the backward pass.

    Returns:
        The same model, for peft to put adapters on. A base in 16 bits does not need this: peft freezes it, and the
        Trainer turns checkpointing on.
    """
    from peft import prepare_model_for_kbit_training

    _keep_as_quantized(model)
    with _set_aside(_as_they_are(model)):
        prepared: PreTrainedModel = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    return prepared


def _keep_as_quantized(model: "PreTrainedModel") -> None:
    """Have a model in 4 bits hold the same weights after it was measured as before.

    On a CPU with AVX512-BF16 the first pass of a `Linear4bit` in evaluation mode puts its weight in another layout for
    good, with the scales rounded to bf16, for an operator without a backward pass (bitsandbytes 0.50). A training that
    was validated got no gradients through that layer from then on, and one that went on from a checkpoint computed with
    the first weights again. Remove when measuring changes nothing.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def fused_experts(model: "torch.nn.Module") -> list["torch.nn.Parameter"]:
    """Parameters that hold all experts of a layer in one 3-D tensor, which bitsandbytes leaves in 16 bits."""
    return [p for p in model.parameters() if p.ndim > 2]


def _as_they_are(model: "torch.nn.Module") -> list["torch.nn.Parameter"]:
    """Parameters that keep their precision."""
    if getattr(model, KEEPS_TYPES, False):
        return [p for p in model.parameters() if type(p).__name__ != "Params4bit"]
    return fused_experts(model)


@contextmanager
def _set_aside(parameters: list["torch.nn.Parameter"]) -> Iterator[None]:
    """Keep the precision of some parameters while peft prepares a model.

    `prepare_model_for_kbit_training` (peft 0.21) turns every weight that is not in 4 bits into fp32, which is meant for
    norms and embeddings; it would double the 84 GiB of Mixtral-8x7B's experts.
    """
    import torch

    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    yield
    for parameter, data in zip(parameters, kept, strict=True):
        parameter.data = data


def peft_config(lora: LoraConfig, labels: Sequence[str] = ()) -> "PeftLoraConfig":
    """The LoRA section as peft's own configuration, but for first values: `thriftune.methods.initial_values` has them.

    Args:
        lora: The LoRA section.
        labels: Names of the classes of a classifier, whose head then trains as a whole.
    """
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=DROPOUT if lora.dropout is None else lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else ALL_LINEAR,
        use_dora=lora.variant == "dora",
        use_rslora=lora.variant == "rslora",
        bias=lora.bias,
        modules_to_save=list(lora.modules_to_save) or None,
        rank_pattern={pattern.pattern: pattern.rank for pattern in lora.rank_patterns},
        alpha_pattern={pattern.pattern: pattern.alpha for pattern in lora.rank_patterns if pattern.alpha is not None},
        task_type=classifier.peft_task(labels),
    )


def train_in_fp32(model: Any) -> Any:
    """Hold what trains in fp32, as mixed precision requires. peft does so for adapters, but not for whole modules.

    Args:
        model: The model.

    Returns:
        The same model.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def trainable_share(model: "torch.nn.Module") -> float:
    """Share of the parameters that training changes; a 4-bit weight counts as the two parameters it holds per byte.

    Args:
        model: The model. Of a weight that is divided over ranks, DeepSpeed notes the number (`ds_numel`).
    """
    trainable = total = 0
    for parameter in model.parameters():
        held: int = getattr(parameter, "ds_numel", parameter.numel())
        count = held * (2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable / total

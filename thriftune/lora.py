"""Low-rank adapters: which modules they attach to, and their configuration."""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.config import LoraConfig
from thriftune.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from transformers import PreTrainedModel

    from thriftune.architecture import Architecture

ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the output head


def require_targets(lora: LoraConfig, architecture: "Architecture") -> None:
    """Refuse target modules that an architecture does not have. Needs no weights.

    Args:
        lora: The LoRA section.
        architecture: The base model's.

    Raises:
        ConfigError: Names that match no linear layer; lists the ones there are.
    """
    present = architecture.linear_shapes
    if not present:
        raise ConfigError.single(
            "model.source", architecture.name, "has no linear layers to adapt.", "Use method: full, or another model."
        )
    absent = [t for t in lora.target_modules or () if not any(_is_target(name, (t,)) for name in present)]
    if absent:
        short = sorted({name.rpartition(".")[2] for name in present})
        raise ConfigError.single(
            "lora.target_modules",
            ", ".join(absent),
            f"no linear layer of this model has that name; it has {', '.join(short)}.",
            "Use those names, or leave target_modules out to adapt every linear layer.",
        )


def require_adapters(lora: LoraConfig, architecture: "Architecture") -> None:
    """Refuse adapters that peft does not put on an architecture, as on fused experts with dropout. Needs no weights.

    Args:
        lora: The LoRA section; its targets are in the architecture.
        architecture: The base model's.

    Raises:
        ConfigError: With peft's reason.
    """
    import torch
    from peft import get_peft_model

    try:
        get_peft_model(architecture.on_meta(torch.bfloat16, layers=1), peft_config(of_any_layer(lora)))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError.single(
            "lora.target_modules",
            ", ".join(lora.target_modules or ()) or "every linear layer",
            f"peft cannot put these adapters on {architecture.name}: {error}",
            "Name the modules to adapt, as q_proj, k_proj, v_proj and o_proj, or set lora.dropout: 0.",
        ) from error


def of_any_layer(lora: LoraConfig) -> LoraConfig:
    """The same adapters without layer numbers in the names of their targets, for a model of fewer layers."""
    targets = lora.target_modules and tuple(sorted({name.rpartition(".")[2] for name in lora.target_modules}))
    return lora.model_copy(update={"target_modules": targets})


def require_same_shape(lora: LoraConfig, adapter_dir: Path) -> None:
    """Refuse to go on training an adapter of another shape: peft would take the adapter's and ignore the run's.

    Raises:
        ConfigError: Rank or alpha differ, or there is no adapter.
    """
    file = adapter_dir / "adapter_config.json"
    if not file.is_file():
        raise ConfigError.single("lora.resume_from", adapter_dir, "has no adapter_config.json.", "Name an adapter.")
    saved = json.loads(file.read_text(encoding="utf-8"))
    problems = [
        Problem(f"lora.{field}", str(value), f"the adapter to go on from has {saved[key]}.", f"Use {saved[key]}.")
        for field, key, value in (("rank", "r", lora.rank), ("alpha", "lora_alpha", lora.alpha))
        if saved[key] != value
    ]
    if problems:
        raise ConfigError(problems)


def require_same_targets(lora: LoraConfig, adapted: Collection[str], architecture: "Architecture") -> None:
    """Refuse to go on training an adapter of other modules: peft would take the adapter's and ignore the run's.

    Args:
        lora: The LoRA section; its targets are in the architecture.
        adapted: Names of the modules that the adapter is on.
        architecture: The base model's.

    Raises:
        ConfigError: With those to write.
    """
    linear = architecture.linear_shapes
    theirs = set(linear).intersection(adapted)
    if theirs == {name for name in linear if _is_target(name, lora.target_modules)}:
        return
    short = sorted({name.rpartition(".")[2] for name in theirs})
    can_be_said = theirs == {name for name in linear if _is_target(name, short)}
    remedy = f"Write target_modules: [{', '.join(short if can_be_said else sorted(theirs))}]."
    raise ConfigError.single(
        "lora.target_modules",
        ", ".join(lora.target_modules or ()) or "every linear layer",
        f"the adapter to go on from is on {', '.join(short) or 'none'}{'' if can_be_said else ' of some layers'}.",
        remedy if theirs else "Start a new adapter.",
    )


def _is_target(name: str, targets: Sequence[str] | None) -> bool:
    """Whether a linear layer is adapted; where no targets are named, all are.

    As peft matches names: the whole one, or what it ends in after a dot.
    """
    return not targets or any(f".{name}".endswith(f".{target}") for target in targets)


def prepare_base(model: "PreTrainedModel", lora: LoraConfig, *, gradient_checkpointing: bool) -> "PreTrainedModel":
    """Freeze a base model, and where it is in 4 bits put everything else into fp32.

    Args:
        model: The base model.
        lora: The LoRA section.
        gradient_checkpointing: Recompute activations in the backward pass.

    Returns:
        The same model, for peft to put adapters on.
    """
    if not lora.four_bit:
        return model  # peft freezes it, and the Trainer turns checkpointing on
    from peft import prepare_model_for_kbit_training

    with _set_aside(fused_experts(model)):
        prepared: PreTrainedModel = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    return prepared


def fused_experts(model: "torch.nn.Module") -> list["torch.nn.Parameter"]:
    """Parameters that hold all experts of a layer in one 3-D tensor, which bitsandbytes leaves in 16 bits."""
    return [p for p in model.parameters() if p.ndim > 2]


@contextmanager
def _set_aside(parameters: list["torch.nn.Parameter"]) -> Iterator[None]:
    """Keep the precision of parameters while peft prepares a model.

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


def peft_config(lora: LoraConfig) -> "PeftLoraConfig":
    """The configuration for peft."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else ALL_LINEAR,
        task_type="CAUSAL_LM",
    )


def trainable_share(model: "torch.nn.Module") -> float:
    """Share of the parameters that training changes; a 4-bit weight counts as the two parameters it holds per byte."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable / total

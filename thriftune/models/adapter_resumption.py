"""Whether an adapter is one that a run can continue: made for its model, of its shape and on its modules."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from thriftune.config import LoraConfig
from thriftune.errors import ConfigError, Problem
from thriftune.models import classifier
from thriftune.models.adapter_weights import RESUME_FROM, adapted_modules, is_target, require_fit, shapes_in
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.weight_files import Folder

_DIFFERS = "adapter-shape-differs"  # the code of a problem: the adapter's shape differs from the run's


def require_alike(lora: LoraConfig, architecture: Architecture, adapter_dir: Path) -> None:
    """Refuse to continue training an adapter of another base model, or on other modules than the run says.

    Args:
        lora: The LoRA section, whose targets exist in the architecture.
        architecture: Architecture of the base model.
        adapter_dir: The adapter.

    Raises:
        AdapterError: Its weights do not fit.
        ConfigError: The run names other modules.
    """
    shapes = shapes_in(Folder(adapter_dir), RESUME_FROM, adapter_dir)
    require_fit(architecture, adapter_dir, shapes, RESUME_FROM, adapter_dir)
    require_same_targets(lora, adapted_modules(shapes), architecture)


def require_same_shape(lora: LoraConfig, adapter_dir: Path) -> None:
    """Refuse to continue training an adapter of another shape: peft would use the adapter's shape and ignore the run's.

    Args:
        lora: The LoRA section.
        adapter_dir: The adapter.

    Raises:
        ConfigError: Ranks, alpha, the variant, or what else trains differ; or there is no adapter.
    """
    file = adapter_dir / ADAPTER_CONFIG
    if not file.is_file():
        raise ConfigError.single(
            RESUME_FROM, adapter_dir, f"has no {ADAPTER_CONFIG}.", "Name an adapter.", code=_DIFFERS
        )
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("peft_type") != "LORA":
        message = f"is an adapter of type {saved.get('peft_type')}, but only LoRA can be trained."
        raise ConfigError.single(
            RESUME_FROM, adapter_dir, message, "Name a LoRA adapter, or start a new one.", code=_DIFFERS
        )
    problems = [
        Problem(f"lora.{field}", str(mine), f"the adapter to resume from has {theirs}.", f"Use {theirs}.")
        for field, mine, theirs in _shapes(lora, saved)
        if mine != theirs
    ]
    if problems:
        raise ConfigError.of(_DIFFERS, problems)


def _shapes(lora: LoraConfig, saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What has to be the same in a run and in the adapter that it continues: the key, and the value in each."""
    # For fused experts peft makes patterns of its own.
    own = {rf".*\.{name}" for name in saved.get("target_parameters") or ()}
    ranks, alphas = saved.get("rank_pattern") or {}, saved.get("alpha_pattern") or {}
    variant = "dora" if saved.get("use_dora") else "rslora" if saved.get("use_rslora") else "lora"
    yield "rank", lora.rank, saved["r"]
    yield "alpha", lora.alpha, saved["lora_alpha"]
    yield "variant", lora.variant, variant
    yield "bias", lora.bias, saved.get("bias", "none")
    # Of a classifier peft names the head by itself.
    named = set(classifier.HEADS) if saved.get("task_type") == classifier.peft_task(["any"]) else set()
    whole = {name for name in saved.get("modules_to_save") or () if name in lora.modules_to_save or name not in named}
    yield "modules_to_save", sorted(set(lora.modules_to_save)), sorted(whole)
    mine = {each.pattern: (each.rank, each.alpha) for each in lora.rank_patterns}
    theirs = {name: (ranks.get(name), alphas.get(name)) for name in {**ranks, **alphas} if name not in own}
    yield "rank_patterns", mine, theirs


def require_same_targets(lora: LoraConfig, adapted: Collection[str], architecture: Architecture) -> None:
    """Refuse to continue training an adapter on other modules: peft would use the adapter's and ignore the run's.

    Args:
        lora: The LoRA section, whose targets exist in the architecture.
        adapted: Names of the modules that the adapter is on.
        architecture: Architecture of the base model.

    Raises:
        ConfigError: The modules differ; it names those to write.
    """
    linear = architecture.linear_shapes
    theirs = set(linear).intersection(adapted)
    if theirs == {name for name in linear if is_target(name, lora.target_modules)}:
        return
    short = sorted({name.rpartition(".")[2] for name in theirs})
    can_be_said = theirs == {name for name in linear if is_target(name, short)}
    remedy = f"Write target_modules: [{', '.join(short if can_be_said else sorted(theirs))}]."
    raise ConfigError.single(
        "lora.target_modules",
        ", ".join(lora.target_modules or ()) or "every linear layer",
        f"the adapter to resume from is on {', '.join(short) or 'none'}{'' if can_be_said else ' of some layers'}.",
        remedy if theirs else "Start a new adapter.",
        code=_DIFFERS,
    )

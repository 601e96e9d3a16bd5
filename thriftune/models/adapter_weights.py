"""Putting complete adapters on models. If some weights do not fit, peft loads the others and says next to nothing."""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config import LoraConfig
from thriftune.errors import AdapterError, ConfigError, Problem
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG, examples, wrapper_in
from thriftune.models.weight_files import Folder, Shapes
from thriftune.stores import failures

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

RESUME_FROM = "lora.resume_from"
WEIGHTS = "adapter_model.safetensors"
# Codes of problems: weights are missing or do not fit; the adapter's shape differs from the run's.
_MISFIT, _DIFFERS = "adapter-weights-misfit", "adapter-shape-differs"
_PREFIX = "base_model.model."  # starts every name in an adapter's file
_LORA = "lora_"  # in the names of a LoRA adapter's weights
# The same for the adapter types in which every module has its own weights; others share some, so this does not work.
_PARTS = {"LORA": _LORA, "IA3": "ia3_"}
_SIZE_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")


def attach(
    model: "PreTrainedModel | PeftModel",
    adapter_dir: Path,
    *,
    name: str = "default",
    field: str = "adapter",
    is_trainable: bool = False,
    dropout: float | None = None,
) -> "PeftModel":
    """Put an adapter on a model that may have other adapters.

    Args:
        model: The base model, or what this returned for another adapter.
        adapter_dir: The adapter.
        name: Name of the adapter on the model.
        field: The key that names it, for messages.
        is_trainable: Whether it is to be trained.
        dropout: Dropout on its input while it trains; None keeps the adapter's own.

    Returns:
        The model with the adapter; the first one is active.

    Raises:
        AdapterError: There is none, or its weights do not match its configuration and the model.
    """
    from peft import LoraConfig as LoraOfPeft
    from peft.utils import load_peft_weights

    config = _config_of(adapter_dir, field)
    if (adapter_dir / WEIGHTS).is_file():
        shapes_in(Folder(adapter_dir), field, adapter_dir)
    if dropout is not None and isinstance(config, LoraOfPeft):
        config.lora_dropout = dropout
    try:
        attached = _put_on(model, adapter_dir, config, name, is_trainable=is_trainable)
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(error, field, adapter_dir) from error
    # Loaded again, because peft does not pass on what it found the first time.
    _fill(attached, load_peft_weights(str(adapter_dir), device="cpu"), config, name, field, adapter_dir)
    return attached


def require_fit(architecture: Architecture, adapter_dir: Path, shapes: Shapes, field: str, value: object) -> None:
    """Refuse an adapter whose weights do not match its configuration and a model. Reads no weights.

    Args:
        architecture: Architecture of the base model.
        adapter_dir: Directory with its configuration.
        shapes: Shape of each of its weights, by name.
        field: The key that names it, for messages.
        value: The value of that key.

    Raises:
        AdapterError: Names the weights that are missing, have another shape, or do not exist in the model.
    """
    import torch
    from peft import get_peft_model

    config = _config_of(adapter_dir, field)
    try:
        model = get_peft_model(architecture.on_meta(torch.bfloat16), config)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise _refused(error, field, value) from error
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    _fill(model, tensors, config, "default", field, value)


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


def shapes_in(folder: Folder, field: str, value: object) -> Shapes:
    """The shape of each weight in an adapter's file, from its header.

    Args:
        folder: The adapter's directory.
        field: The key that names it, for messages.
        value: The value of that key.

    Raises:
        AdapterError: The file is missing, damaged or truncated.
        TransientError: The store did not answer.
    """
    with failures.explained(field, str(value), AdapterError, f"has no {WEIGHTS}.", code=_MISFIT):
        try:
            return folder.shapes(WEIGHTS)
        except ValueError as error:
            raise AdapterError.single(
                field, value, f"{WEIGHTS} {error}.", "Copy or save the adapter again.", code=_MISFIT
            ) from error


def adapted_modules(shapes: Shapes) -> set[str]:
    """Names of the modules that an adapter is on.

    Args:
        shapes: Shape of each of its weights, by name.
    """
    return {name.removeprefix(_PREFIX).partition(f".{_LORA}")[0] for name in shapes if f".{_LORA}" in name}


def _put_on(
    model: "PreTrainedModel | PeftModel", adapter_dir: Path, config: "PeftConfig", name: str, *, is_trainable: bool
) -> "PeftModel":
    """Put an adapter on a model as peft does, with the weights that fit; the others are refused by name afterwards."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(adapter_dir), name, is_trainable=is_trainable, ignore_mismatched_sizes=True)
        return model
    return PeftModel.from_pretrained(model, str(adapter_dir), name, is_trainable, config, ignore_mismatched_sizes=True)


def _config_of(adapter_dir: Path, field: str) -> "PeftConfig":
    from peft import PeftConfig

    if not (adapter_dir / ADAPTER_CONFIG).is_file():  # else peft would look for it on the hub
        raise AdapterError.single(
            field,
            adapter_dir,
            f"has no {ADAPTER_CONFIG}.",
            "Name the directory of an adapter.",
            code=AdapterError.missing,
        )
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(adapter_dir))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise AdapterError.single(
            field, adapter_dir, f"its {ADAPTER_CONFIG} cannot be used: {error}.", "Save the adapter again."
        ) from error
    return config


def _fill(
    model: "PeftModel",
    tensors: Mapping[str, "torch.Tensor"],
    config: "PeftConfig",
    name: str,
    field: str,
    value: object,
) -> None:
    """Load the weights of an adapter that is already on a model.

    Args:
        model: The model with the adapter.
        tensors: The adapter's weights, by their names in its file.
        config: The adapter's configuration.
        name: Name of the adapter on the model.
        field: The key that names it, for messages.
        value: The value of that key.

    Raises:
        AdapterError: Weights are missing, or do not fit.
    """
    from peft import set_peft_model_state_dict

    kind: Any = config.peft_type
    part = _PARTS.get(str(kind.value))
    if part is None:
        return
    origin = config.base_model_name_or_path
    remedy = f"Use the base model that it was trained on{f' ({origin})' if origin else ''}, or save it again."
    try:
        loaded: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=name)
    except KeyError as error:  # of a module that was trained as a whole
        raise AdapterError.single(field, value, f"has no weights for {error}.", remedy, code=_MISFIT) from error
    except RuntimeError as error:
        found = _SIZE_MISMATCH.findall(str(error))
        if not found:
            raise
        shapes = [f"{_in_file(key, name)} is {stored} and should be {needed}" for key, stored, needed in found]
        message = f"has weights with other shapes than the model needs: {examples(shapes)}."
        raise AdapterError.single(field, value, message, remedy, code=_MISFIT) from error
    missing = [_in_file(key, name) for key in sorted(loaded.missing_keys) if part in key and f".{name}" in key]
    without_place = [_in_file(key, name) for key in sorted(loaded.unexpected_keys)]
    _require_all(missing, without_place, remedy, field, value)


def _require_all(missing: list[str], without_place: list[str], remedy: str, field: str, value: object) -> None:
    """Refuse an adapter with missing weights, or with weights that the model does not have.

    Args:
        missing: Names of missing weights.
        without_place: Names of weights that the model does not have.
        remedy: What to do about it.
        field: The key that names it, for messages.
        value: The value of that key.

    Raises:
        AdapterError: Names them.
    """
    if wrapped := wrapper_in([key.replace(_PREFIX, "", 1) for key in without_place]):
        remedy = f"{wrapped} Unwrap the model before saving its adapter, or remove that part from every name."
    misplaced = [key for key in without_place if _LORA in key]
    messages = []
    if missing:
        messages.append(f"{len(missing)} of its weights are missing, such as {examples(missing)}.")
    if misplaced:
        messages.append(f"the model has no place for {len(misplaced)} of its weights, such as {examples(misplaced)}.")
    if messages:
        raise AdapterError.of(_MISFIT, [Problem(field, str(value), message, remedy) for message in messages])
    if without_place:
        logger.warning("%s = %s: the model has no place for %s", field, value, examples(without_place))


def _in_file(key: str, name: str) -> str:
    """The name of a weight in an adapter's file, which leaves out the adapter's name."""
    return key.replace(f".{name}", "", 1)


def _refused(error: Exception, field: str, value: object) -> AdapterError:
    text = " ".join(str(error).split())[:300]
    return AdapterError.single(
        field,
        value,
        f"peft cannot put it on the model: {text}.",
        "Use the base model that it was trained on.",
        code=_MISFIT,
    )


def require_same_shape(lora: LoraConfig, adapter_dir: Path) -> None:
    """Refuse to continue training an adapter of another shape: peft would use the adapter's shape and ignore the run's.

    Args:
        lora: The LoRA section.
        adapter_dir: The adapter.

    Raises:
        ConfigError: Rank or alpha differ, or there is no adapter.
    """
    file = adapter_dir / "adapter_config.json"
    if not file.is_file():
        raise ConfigError.single(
            "lora.resume_from", adapter_dir, "has no adapter_config.json.", "Name an adapter.", code=_DIFFERS
        )
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("peft_type") != "LORA":
        message = f"is an adapter of type {saved.get('peft_type')}, but only LoRA can be trained."
        raise ConfigError.single(
            "lora.resume_from", adapter_dir, message, "Name a LoRA adapter, or start a new one.", code=_DIFFERS
        )
    problems = [
        Problem(f"lora.{field}", str(value), f"the adapter to resume from has {saved[key]}.", f"Use {saved[key]}.")
        for field, key, value in (("rank", "r", lora.rank), ("alpha", "lora_alpha", lora.alpha))
        if saved[key] != value
    ]
    if problems:
        raise ConfigError.of(_DIFFERS, problems)


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


def is_target(name: str, targets: Sequence[str] | None) -> bool:
    """Whether a linear layer is adapted; without named targets, all are.

    Names match as in peft: the whole name, or its end after a dot.
    """
    return not targets or any(f".{name}".endswith(f".{target}") for target in targets)

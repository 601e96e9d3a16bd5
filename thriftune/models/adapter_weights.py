"""Putting complete adapters on models. If some weights do not fit, peft loads the others and says next to nothing."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.errors import AdapterError
from thriftune.models import adapter_misfits, classifier, lineage
from thriftune.models.adapter_misfits import LORA, PREFIX
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.weight_files import Folder, Shapes
from thriftune.stores import failures

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

RESUME_FROM = "lora.resume_from"
WEIGHTS = "adapter_model.safetensors"
# The same for the adapter types that are put on modules and in which every module has its own weights; in others that
# are put on modules they share some, so this does not work.
_PARTS = {"LORA": LORA, "IA3": "ia3_"}
_OF_PREFIX = ("prompt_embeddings",)  # which peft loads apart from the others
# The types of which peft can say which names their file has to have.
_NAMED = {*_PARTS, "PREFIX_TUNING", "ADAPTION_PROMPT"}


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
        AdapterError: There is none, its weights do not match its configuration and the model, or it was trained on
            another base or with another chat template.
    """
    from peft import LoraConfig as LoraOfPeft
    from peft.utils import load_peft_weights

    config = config_of(adapter_dir, field)
    if place := _place_of(model):
        lineage.require_lineage(adapter_dir, place, field)
    _require_own_biases(model, config, field, adapter_dir)
    if (adapter_dir / WEIGHTS).is_file():
        shapes_in(Folder(adapter_dir), field, adapter_dir)
    if dropout is not None and isinstance(config, LoraOfPeft):
        config.lora_dropout = dropout
    try:
        attached = _put_on(model, adapter_dir, config, name, is_trainable=is_trainable)
    except (KeyError, TypeError, ValueError) as error:
        raise adapter_misfits.refused(error, field, adapter_dir) from error
    except RuntimeError as error:  # of a type whose weights peft takes as they are
        raise adapter_misfits.of_other_shape(
            error, name, adapter_misfits.remedy_of(config), field, adapter_dir
        ) from error
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

    config = config_of(adapter_dir, field)
    task = classifier.peft_task(architecture.labels)
    if config.task_type != task and classifier.peft_task(["any"]) in (task, config.task_type):
        remedy = "Name an adapter of the same task, or start a new one."
        raise AdapterError.single(
            field, value, f"was trained for task {config.task_type}, not {task}.", remedy, code=adapter_misfits.CODE
        )
    origin, config.base_model_name_or_path = config.base_model_name_or_path, None
    try:  # without the name, as peft warns that this model has another one
        model = get_peft_model(architecture.on_meta(torch.bfloat16), config)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise adapter_misfits.refused(error, field, value) from error
    config.base_model_name_or_path = origin
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    _fill(model, tensors, config, "default", field, value)


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
    with failures.explained(field, str(value), AdapterError, f"has no {WEIGHTS}.", code=adapter_misfits.CODE):
        try:
            return folder.shapes(WEIGHTS)
        except ValueError as error:
            raise AdapterError.single(
                field, value, f"{WEIGHTS} {error}.", "Copy or save the adapter again.", code=adapter_misfits.CODE
            ) from error


def adapted_modules(shapes: Shapes) -> set[str]:
    """Names of the modules that an adapter is on.

    Args:
        shapes: Shape of each of its weights, by name.
    """
    return {name.removeprefix(PREFIX).partition(f".{LORA}")[0] for name in shapes if f".{LORA}" in name}


def _put_on(
    model: "PreTrainedModel | PeftModel", adapter_dir: Path, config: "PeftConfig", name: str, *, is_trainable: bool
) -> "PeftModel":
    """Put an adapter on a model as peft does, with the weights that fit; the others are refused by name afterwards."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(adapter_dir), name, is_trainable=is_trainable, ignore_mismatched_sizes=True)
        return model
    return PeftModel.from_pretrained(model, str(adapter_dir), name, is_trainable, config, ignore_mismatched_sizes=True)


def _place_of(model: "PreTrainedModel | PeftModel") -> Path | None:
    """The directory that a model was loaded from; None for one that was made in memory."""
    adapted: Any = model
    base = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    place = Path(base.name_or_path or "")
    return place if base.name_or_path and (place / "config.json").is_file() else None


def config_of(adapter_dir: Path, field: str) -> "PeftConfig":
    """The configuration of an adapter. Reads no weights.

    Args:
        adapter_dir: The adapter's directory.
        field: The key that names it, for messages.

    Raises:
        AdapterError: There is none, or it cannot be read.
    """
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
    if kind.value not in _NAMED:
        return
    remedy = adapter_misfits.remedy_of(config)
    try:
        with _present(model, config, name):
            loaded: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=name)
            missing = _without(model, tensors, name, part)
    except KeyError as error:  # of a module that was trained as a whole
        raise AdapterError.single(
            field, value, f"has no weights for {error}.", remedy, code=adapter_misfits.CODE
        ) from error
    except RuntimeError as error:
        raise adapter_misfits.of_other_shape(error, name, remedy, field, value) from error
    if part:
        missing += [
            adapter_misfits.in_file(key, name)
            for key in sorted(loaded.missing_keys)
            if part in key and f".{name}" in key
        ]
    without_place = [
        adapter_misfits.in_file(key, name) for key in sorted(loaded.unexpected_keys) if key not in _OF_PREFIX
    ]
    adapter_misfits.require_all(missing, without_place, remedy, field, value)


def _present(model: Any, config: "PeftConfig", name: str) -> AbstractContextManager[None]:
    """Have the parts of an adapter in its model: peft takes LLaMA-Adapter's out of it while another one is active."""
    if config.is_adaption_prompt:
        in_it: AbstractContextManager[None] = model.base_model._temporarily_active(name)  # noqa: SLF001 - as peft does
        return in_it
    return nullcontext()


def _without(model: "PeftModel", tensors: Mapping[str, "torch.Tensor"], name: str, part: str | None) -> list[str]:
    """Names that an adapter's file has to have and does not, except those with a part; such as biases."""
    from peft import get_peft_model_state_dict

    needed = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return sorted(key for key in needed if key not in tensors and not (part and part in key))


def _require_own_biases(model: Any, config: "PeftConfig", field: str, value: object) -> None:
    """Refuse an adapter beside others if one of them trained the base model's biases, which all would then have.

    Raises:
        AdapterError: Names the adapter.
    """
    configs = [*getattr(model, "peft_config", {}).values(), config]
    if len(configs) > 1 and any(getattr(each, "bias", "none") != "none" for each in configs):
        message = "cannot be on a model beside another: one of them has trained biases of the base model."
        raise AdapterError.single(
            field, value, message, "Use one adapter at a time, or merge it.", code=adapter_misfits.CODE
        )


def is_target(name: str, targets: Sequence[str] | None) -> bool:
    """Whether a linear layer is adapted; without named targets, all are.

    Names match as in peft: the whole name, or its end after a dot.
    """
    return not targets or any(f".{name}".endswith(f".{target}") for target in targets)

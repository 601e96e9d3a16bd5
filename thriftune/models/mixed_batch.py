"""Which adapters may answer in one batch, each its own rows: those that peft's `adapter_names` computes as it should.

peft refuses some adapters there, and of others it quietly computes something else: all of that is decided here, once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.adapter_weights import config_of

if TYPE_CHECKING:
    from peft import PeftConfig

# peft's name for rows of a mixed batch that no adapter changes.
NO_ADAPTER = "__base__"
_LORA = "LORA"
# Fields of peft's LoraConfig, and why an adapter that has one cannot be in a batch with others.
# Source: peft 0.21.2, its layers' check of adapter_names, the wrapper of modules that train beside LoRA, and generate.
_REFUSED: Mapping[str, str] = {
    "use_dora": "peft refuses DoRA in a batch of several adapters",
    # The wrapper asks which adapter is active, not which one a row names: its weights are left out without a word.
    "modules_to_save": "of modules that trained as a whole, peft uses those of one adapter for every row",
    "trainable_token_indices": "peft puts no adapter on a model beside one with tokens that trained",
    "target_parameters": "peft refuses adapters on parameters, such as fused experts, in a batch of several",
    "layer_replication": "it repeats layers of the base, which the others do not have",
    "alora_invocation_tokens": "where it begins to act depends on the prompt",
}
# Of these, those that change the base for the other adapters on it, or for a batch of them.
_ALONE = ("trainable_token_indices", "target_parameters", "layer_replication")
_OF_THE_BASE = "its trained biases are those of the base model, for every row"


@dataclass(frozen=True)
class Load:
    """Adapters that are on one copy of the base at a time.

    Attributes:
        kind: peft's name for their type; empty for the base without any.
        adapters: Their directories by name.
        mixed: Names of those that may be in one batch.
    """

    kind: str
    adapters: Mapping[str, Path]
    mixed: frozenset[str]


def batchable(config: "PeftConfig") -> str:
    """Why an adapter cannot be in one batch with others; empty if it can.

    Args:
        config: Its configuration.
    """
    kind = kind_of(config)
    if kind != _LORA:
        return f"peft computes batches of several adapters for LoRA only, and this is {kind}"
    if getattr(config, "bias", "none") != "none":
        return _OF_THE_BASE
    return next((reason for field, reason in _REFUSED.items() if getattr(config, field, None)), "")


def alone(config: "PeftConfig") -> str:
    """Why an adapter needs a copy of the base for itself; empty if others may be on the same.

    Args:
        config: Its configuration.
    """
    reason = batchable(config)
    return reason if reason in (_OF_THE_BASE, *(_REFUSED[field] for field in _ALONE)) else ""


def changes_base(config: "PeftConfig") -> str:
    """Why the base itself is another while an adapter is on it, whoever answers; empty if it is not.

    Args:
        config: Its configuration.
    """
    reason = batchable(config)
    return reason if reason == _OF_THE_BASE else ""


def unbatchable_on(model: Any, name: str) -> str:
    """Why an adapter that is on a model cannot be in one batch with others; empty if it can.

    Some of that shows only there: peft puts adapters on the fused experts of a mixture although the configuration names
    layers, and a variant of LoRA computes in its own way.

    Args:
        model: A peft model.
        name: Name of the adapter on it.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    for module in model.modules():
        if isinstance(module, ParamWrapper):  # which refuses a batch of others, too
            return _REFUSED["target_parameters"]
        if isinstance(module, LoraLayer) and name in module.lora_variant:
            return f"it is a variant of LoRA ({type(module.lora_variant[name]).__name__})"
    return batchable(model.peft_config[name])


def whole_modules(model: Any) -> list[Any]:
    """The modules of a model that some adapter has trained as a whole, for `sharing`.

    Args:
        model: A peft model.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]


@contextmanager
def sharing(whole: Sequence[Any]) -> Iterator[None]:
    """Have the base's own modules where an adapter has trained one as a whole: rows of others share a batch.

    peft (0.21.2) looks there for a module of every adapter that a batch names, or uses the active one's for all.

    Args:
        whole: The model's modules of that kind. Which of its adapters is active stays as it is.
    """
    for module in whole:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in whole:
            module.enable_adapters(True)


def kind_of(config: "PeftConfig") -> str:
    """Name of the type of an adapter in peft, such as LORA.

    Args:
        config: Its configuration.
    """
    return str(getattr(config.peft_type, "value", config.peft_type))


def loads_of(adapters: Mapping[str, Path]) -> Iterator[Load]:
    """Sort adapters by which can be on one copy of the base, in the order of the first of each.

    Adapters of one type share it. One that changes the base itself, such as its biases, has a copy of its own.

    Args:
        adapters: Directories by name.

    Raises:
        AdapterError: One has no configuration that can be read.
    """
    sorted_by: dict[tuple[str, str], dict[str, Path]] = {}
    mixed = set()
    for name, directory in adapters.items():
        config = config_of(directory, "adapters")
        if not batchable(config):
            mixed.add(name)
        sorted_by.setdefault((kind_of(config), name if alone(config) else ""), {})[name] = directory
    for (kind, _), found in sorted_by.items():
        yield Load(kind, found, frozenset(mixed & found.keys()))

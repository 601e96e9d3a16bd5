"""A model's config.json as transformers' configuration of a causal language model, or the reason why it is not one."""

import difflib
from collections.abc import Mapping
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError, in_a_line
from thriftune.models import config_json as model_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FIELD = model_config.FIELD
# Every decoder has these, under these names or names that its configuration class maps to them. If one is missing,
# transformers would fill in the number of some other model.
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_UNUSABLE = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError)
DECODERS = "Use a decoder, such as Llama, Mistral or Qwen."


def read(content: dict[str, Any], name: str, *, trust_remote_code: bool) -> "PretrainedConfig":
    """The configuration as transformers' object.

    Args:
        content: The parsed config.json.
        name: The model's source, for messages; its directory if the model ships its own code.
        trust_remote_code: Run that code.

    Raises:
        ModelSourceError: transformers does not know it, or cannot use it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = content.get("model_type")
    if kind in CONFIG_MAPPING:
        try:
            config: PretrainedConfig = AutoConfig.for_model(**content)
        except (*_UNUSABLE, StrictDataclassError) as error:
            raise ModelSourceError.single(
                _FIELD,
                name,
                f"its config.json cannot be used ({in_a_line(error)}).",
                "Repair config.json.",
                code="model-config-invalid",
            ) from error
        return config
    if trust_remote_code and Path(name).is_dir():
        theirs: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=True)
        return theirs
    close = difflib.get_close_matches(str(kind), CONFIG_MAPPING.keys(), n=3)
    known = f" Similar names: {', '.join(close)}." if close else ""
    raise ModelSourceError.single(
        _FIELD,
        name,
        f"its config.json names the architecture (model_type) {kind!r}, which transformers does not know.{known}",
        "Use a model that transformers knows, or set model.trust_remote_code for one that ships its code.",
        code="model-config-invalid",
    )


def require_language_model(
    content: Mapping[str, Any], config: "PretrainedConfig", name: str, *, trust_remote_code: bool
) -> None:
    """Refuse models for which transformers has no causal language model, and encoders, for which it does have one.

    Args:
        content: The parsed config.json.
        config: The same as transformers' configuration.
        name: The model's source, for messages.
        trust_remote_code: Whether code that the model ships may define it.

    Raises:
        ModelSourceError: It is none; the message says what it is.
    """
    from transformers.models.auto import modeling_auto

    kind, text = content.get("model_type"), content.get("text_config") or {}
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    brings_code = trust_remote_code and "AutoModelForCausalLM" in (content.get("auto_map") or {})
    if getattr(config, "is_encoder_decoder", False):
        what = "is an encoder-decoder"
    elif kind not in known and not brings_code and type(config).__module__.startswith("transformers."):
        what = f"is of model_type {kind}, for which transformers has no causal language model"
    elif kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _flag(config, "is_decoder", "causal"):
        what = "is an encoder (its config.json does not set is_decoder)"
    elif getattr(config, "attn_type", "") == "bi":
        what = "is an encoder (attn_type is bi in its config.json)"
    else:
        return
    inside = text.get("model_type") if text is not content else None
    other = f" Or use the {inside} model inside it, saved on its own." if inside in known else ""
    raise ModelSourceError.single(
        _FIELD, name, f"{what}; it is not a causal language model.", DECODERS + other, code="model-config-invalid"
    )


def require_causal(model: "PreTrainedModel", name: str) -> None:
    """Refuse a model in which every attention looks ahead, such as a BERT that is a decoder only by its class.

    Args:
        model: The model on the meta device.
        name: The model's source, for messages.

    Raises:
        ModelSourceError: It is such a model.
    """
    causal = {module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    if causal == {False} and getattr(model.config, "is_decoder", None) is False:
        raise ModelSourceError.single(
            _FIELD,
            name,
            "its attention looks ahead like an encoder's; it is not a causal language model.",
            DECODERS,
            code="model-config-invalid",
        )


def require_sizes(given: Mapping[str, Any], config: "PretrainedConfig", name: str) -> None:
    """Refuse a configuration that leaves a size to transformers' defaults, which belong to some other model.

    Args:
        given: The text part of config.json.
        config: The same as transformers' configuration.
        name: The model's source, for messages.

    Raises:
        ModelSourceError: Names the sizes that are missing or invalid.
    """
    if not hasattr(type(config), "num_attention_heads") and _size(config, "num_attention_heads") is None:
        raise ModelSourceError.single(
            _FIELD,
            name,
            f"is of model_type {config.model_type}, which has no attention heads.",
            DECODERS,
            code="model-config-invalid",
        )
    theirs = getattr(type(config), "attribute_map", {})
    derived = {field for field in _NEEDED if isinstance(getattr_static(config, field, None), property)}
    missing = [f for f in _NEEDED if f not in derived and f not in given and theirs.get(f) not in given]
    if missing:
        raise ModelSourceError.single(
            _FIELD,
            name,
            f"its config.json has no {', '.join(missing)}.",
            "Use the model's complete config.json.",
            code="model-config-invalid",
        )
    bad = [field for field in _NEEDED if not _is_count(_size(config, field))]
    if bad:
        raise ModelSourceError.single(
            _FIELD,
            name,
            f"its config.json has no positive whole number for {', '.join(bad)}.",
            "Repair config.json, or use another model.",
            code="model-config-invalid",
        )


def _size(config: "PretrainedConfig", field: str) -> object:
    """A size of a model; that of the first layer if it differs between layers."""
    try:
        return getattr(config, field, None)
    except RuntimeError:  # transformers' AmbiguousGlobalPerLayerAttributeError
        return getattr(config.per_layer_config[0], field, None)


def _flag(config: "PretrainedConfig", *names: str) -> bool:
    return any(getattr(config, name, False) for name in names)


def positions_of(config: "PretrainedConfig") -> int | None:
    """Positions that a model was made for, from the configuration of its text part; None if it does not say."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(positions) if isinstance(positions, int) and positions > 0 else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

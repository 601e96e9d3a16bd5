"""Adapters that cannot be trained on an architecture are refused before any weights are read."""

from thriftune.config import LoraConfig
from thriftune.errors import ConfigError
from thriftune.methods.adapters import adapter_parameters, fused_adapters
from thriftune.models.adapter_weights import is_target
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit, quantized_layers, require_savings

_MISSING, _REFUSED = "lora-target-missing", "lora-refused"


def require_trainable(lora: LoraConfig, architecture: Architecture, four_bit: FourBit | None = None) -> None:
    """Refuse adapters that cannot be trained on an architecture, or a base that 4 bits do not suit. Needs no weights.

    Args:
        lora: The LoRA section.
        architecture: The base model's.
        four_bit: How the base is quantized to 4 bits; None if it is not.

    Raises:
        ConfigError: A target does not exist, peft refuses the adapters, or 4 bits save nothing.
    """
    require_targets(lora, architecture)
    if four_bit is not None:
        require_trainable_modules(lora, architecture)
    require_adapters(lora, architecture)
    if four_bit is not None:
        require_savings(four_bit, architecture)


def require_trainable_modules(lora: LoraConfig, architecture: Architecture) -> None:
    """Refuse modules that would train as a whole and are held in 4 bits. Needs no weights.

    Args:
        lora: The LoRA section.
        architecture: The base model's.

    Raises:
        ConfigError: Names the module.
    """
    quantized = quantized_layers(architecture)
    for wanted in lora.modules_to_save:
        if any(f".{wanted}." in f".{name}." for name in quantized):
            message = "is held in 4 bits, or has parts that are, which cannot train."
            remedy = "Use method: lora, or name modules that are not: lm_head, embed_tokens or norms."
            raise ConfigError.single("lora.modules_to_save", wanted, message, remedy, code=_REFUSED)


def require_targets(lora: LoraConfig, architecture: Architecture) -> None:
    """Refuse target modules that an architecture does not have. Needs no weights.

    Args:
        lora: The LoRA section.
        architecture: The base model's.

    Raises:
        ConfigError: A name matches no linear layer; the message lists the layers there are.
    """
    present = architecture.linear_shapes
    if not present:
        raise ConfigError.single(
            "model.source",
            architecture.name,
            "has no linear layers to adapt.",
            "Use method: full, or another model.",
            code=_MISSING,
        )
    absent = [t for t in lora.target_modules or () if not any(is_target(name, (t,)) for name in present)]
    if absent:
        short = sorted({name.rpartition(".")[2] for name in present})
        raise ConfigError.single(
            "lora.target_modules",
            ", ".join(absent),
            f"no linear layer of this model has that name; it has {', '.join(short)}.",
            "Use those names, or leave target_modules out to adapt every linear layer.",
            code=_MISSING,
        )


def require_adapters(lora: LoraConfig, architecture: Architecture) -> None:
    """Refuse adapters that peft cannot put on an architecture, such as fused experts with dropout. Needs no weights.

    Args:
        lora: The LoRA section; its targets exist in the architecture.
        architecture: The base model's.

    Raises:
        ConfigError: peft refuses them; the message gives its reason.
    """
    if lora.dropout and fused_adapters(lora, architecture):
        raise ConfigError.single(
            "lora.dropout",
            lora.dropout,
            f"peft has no dropout for the fused experts of {architecture.name}, which get adapters.",
            "Set lora.dropout: 0 or leave it out; or name other modules in lora.target_modules: q_proj, v_proj.",
            code=_REFUSED,
        )
    _require_matches(lora, architecture)
    _require_first_values(lora, architecture)
    trained = sum(adapter_parameters(architecture, lora).values())
    bias = {"bias": "none"}
    if lora.bias != "none" and trained == sum(adapter_parameters(architecture, lora.model_copy(update=bias)).values()):
        message = f"{architecture.name} has no such biases, so it would change nothing."
        raise ConfigError.single("lora.bias", lora.bias, message, "Leave lora.bias out.", code=_REFUSED)


def _require_matches(lora: LoraConfig, architecture: Architecture) -> None:
    """Refuse names of modules, and patterns for ranks, that match nothing: peft overlooks them.

    Raises:
        ConfigError: Names what matches nothing, or a module that shares its weight with another.
    """
    from peft.utils.other import get_pattern_key

    adapted = [name for name in architecture.linear_shapes if is_target(name, lora.target_modules)]
    for pattern in lora.rank_patterns:
        if not any(get_pattern_key([pattern.pattern], name) == pattern.pattern for name in adapted):
            message = "matches none of the modules that get adapters."
            remedy = "Write the end of a module's name, such as v_proj, or leave the pattern out."
            raise ConfigError.single("lora.rank_patterns", pattern.pattern, message, remedy, code=_MISSING)
    modules = [name for name, _ in architecture.skeleton.named_modules()]
    for wanted in lora.modules_to_save:
        if not any(f".{name}".endswith(f".{wanted}") for name in modules):
            message = "no module of this model has that name."
            remedy = f"Use the end of a module's name, such as {architecture.head_name.rpartition('.')[0]}."
            raise ConfigError.single("lora.modules_to_save", wanted, message, remedy, code=_MISSING)
        _require_untied(wanted, architecture)


def _require_untied(wanted: str, architecture: Architecture) -> None:
    """Refuse to train the embeddings or the output head as a whole where they are the same weight.

    Raises:
        ConfigError: peft would train a copy of one of them, which a merged model cannot hold beside the other.
    """
    skeleton = architecture.skeleton
    embeddings, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    inside = {part for name, module in skeleton.named_modules() if name.endswith(wanted) for part in module.modules()}
    if head is not None and head.weight is embeddings.weight and inside & {embeddings, head}:
        raise ConfigError.single(
            "lora.modules_to_save",
            wanted,
            f"the embeddings and the output head of {architecture.name} are the same weight.",
            "Leave it out, or use method: partial, which trains that weight itself.",
            code=_REFUSED,
        )


def _require_first_values(lora: LoraConfig, architecture: Architecture) -> None:
    """Refuse first values that some of the adapters cannot have.

    Raises:
        ConfigError: Adapters are on fused experts, or have more rows than their weight has singular values.
    """
    from peft.utils.other import get_pattern_key

    if lora.init == "default":
        return
    if fused_adapters(lora, architecture):
        raise ConfigError.single(
            "lora.init",
            lora.init,
            f"peft has only the default for the fused experts of {architecture.name}, which get adapters.",
            "Leave lora.init out; or name other modules in lora.target_modules: q_proj, v_proj.",
            code=_REFUSED,
        )
    ranks = {pattern.pattern: pattern.rank for pattern in lora.rank_patterns}
    for name, shape in architecture.linear_shapes.items():
        rank = ranks.get(get_pattern_key(list(ranks), name), lora.rank)
        if is_target(name, lora.target_modules) and rank > min(shape):
            raise ConfigError.single(
                "lora.rank",
                rank,
                f"is more than {name} has singular values ({min(shape)}), which lora.init: {lora.init} needs.",
                f"Use at most {min(shape)}, or leave lora.init out.",
                code=_REFUSED,
            )

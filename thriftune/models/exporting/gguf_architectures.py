"""What a GGUF file says of a model beside its vocabulary: the settings and the tensors of each architecture.

An architecture is covered if llama.cpp runs it, gguf's table names its tensors, and transformers reads it back.

Source: llama.cpp's converter from hub models (convert_hf_to_gguf), for names of keys, the order of rows, and what is
stored in 32 bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

FIELD = "export.formats"
ROPE_FACTORS = "rope_freqs.weight"
_ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Architecture:
    """How an architecture of transformers is written.

    Attributes:
        name: Its name in GGUF.
        permutes: Whether the rows of queries and keys are in another order, as in every file of llama's.
        sized_heads: Whether the head's size stands for itself, and is not the hidden size by the number of heads.
        factors: Whether llama.cpp reads a factor of each frequency of the positions; of the others it refuses a file
            with them, as one with too many tensors.
    """

    name: str
    permutes: bool = False
    sized_heads: bool = False
    factors: bool = False


# By transformers' model_type. Mistral is the same architecture as Llama.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permutes=True, factors=True),
    "mistral": Architecture("llama", permutes=True, factors=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", sized_heads=True),
}


def require_covered(content: Mapping[str, Any], formats: str, source: str) -> Architecture:
    """Refuse a model whose architecture, or a part of it, a GGUF file cannot hold.

    Args:
        content: Its config.json.
        formats: The formats that were asked for, for the message.
        source: The model, for the message.

    Returns:
        How it is written.

    Raises:
        ExportError: Names what is not covered, and what is.
    """
    kind = str(content.get("model_type"))
    found = ARCHITECTURES.get(kind)
    if found is None:
        message = f"{source} is of architecture {kind}, which no GGUF file is written of."
        remedy = f"Covered are {', '.join(ARCHITECTURES)}; int8, nf4, fp32, fp16 and bf16 take every architecture."
        raise ExportError.single(FIELD, formats, message, remedy)
    lacking = _lacking(content, kind)
    if lacking:
        message = f"{source} has {lacking}, which a GGUF file of {found.name} cannot hold."
        raise ExportError.single(FIELD, formats, message, "Use int8, nf4, fp32, fp16 or bf16.")
    return found


def _lacking(content: Mapping[str, Any], kind: str) -> str:
    """What a model has that its architecture in GGUF has not, or the reader does not read; empty if nothing."""
    rope = _rope_of(content)
    if rope not in _ROPES or (rope == "llama3" and not ARCHITECTURES[kind].factors):
        return f"rope_scaling of type {rope}"
    biased = [name for name in ("attention_bias", "mlp_bias") if content.get(name)]
    if biased:
        return f"{biased[0]}: true"
    if content.get("use_sliding_window"):
        return "use_sliding_window: true"
    if str(content.get("hidden_act", "silu")) not in ("silu", "swish"):
        return f"hidden_act {content['hidden_act']}"
    heads, hidden = content.get("num_attention_heads"), content.get("hidden_size")
    head = content.get("head_dim")
    if kind == "qwen2" and head and heads and hidden and head * heads != hidden:
        return f"head_dim {head}"
    return ""


def _rope_of(content: Mapping[str, Any]) -> str:
    scaling = content.get("rope_parameters") or content.get("rope_scaling") or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default") if isinstance(scaling, Mapping) else "?"


def head_size(config: "PretrainedConfig") -> int:
    """Size of an attention head.

    Args:
        config: The model's configuration.
    """
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_settings(writer: Any, config: "PretrainedConfig") -> None:
    """Write a model's settings.

    Args:
        writer: A GGUFWriter of its architecture.
        config: The model's configuration.
    """
    from gguf import RopeScalingType

    rope, size = dict(config.rope_parameters), head_size(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def rope_factors(config: "PretrainedConfig") -> "np.ndarray[Any, Any] | None":
    """What each frequency of the rotation is divided by, which Llama 3's files hold as a tensor; None for others.

    Args:
        config: The model's configuration.

    Source: the same converter, LlamaModel.generate_extra_tensors.
    """
    import numpy as np

    rope = dict(config.rope_parameters)
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope["original_max_position_embeddings"]
    lengths = 2 * math.pi / frequencies
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(lengths < original / high, 1.0, np.where(lengths > original / low, factor, between))
    return found.astype(np.float32)


def row_order(tensor: str, rows: int, config: "PretrainedConfig") -> "np.ndarray[Any, Any] | None":
    """The order of a tensor's rows in the file, where it is not the model's.

    llama.cpp rotates neighbouring values of queries and keys, transformers those half a head apart.

    Args:
        tensor: Its name in GGUF.
        rows: Number of its rows.
        config: The model's configuration.

    Returns:
        For each row of the file, the model's; None where the order is the same.
    """
    import numpy as np

    parts = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    heads = next((count for part, count in parts.items() if part in tensor), None)
    if heads is None or not ARCHITECTURES[config.model_type].permutes:
        return None
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def is_derived(name: str, config: "PretrainedConfig") -> bool:
    """Whether a tensor in a model's files may be left out: a buffer, or a head that is the embedding.

    Args:
        name: Its name.
        config: The model's configuration.
    """
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def tensor_names(config: "PretrainedConfig", names: list[str]) -> dict[str, str]:
    """The name in GGUF of each tensor that is written; buffers, and a head that is the embedding, are not.

    Args:
        config: The model's configuration.
        names: Names of the tensors in the model's files.

    Raises:
        ExportError: gguf's table does not have one of them.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = ARCHITECTURES[config.model_type].name
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, config.num_hidden_layers)
    found: dict[str, str] = {}
    for name in names:
        if is_derived(name, config):
            continue
        known = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            message = f"has a tensor {name}, which gguf's table of {architecture} does not name."
            raise ExportError.single(FIELD, "gguf", message, "Use int8, nf4, fp32, fp16 or bf16.")
        found[name] = known
    return found

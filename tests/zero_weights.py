"""Safetensors files of nothing but zeros, from the shapes of their tensors: whole models of a few hundred bytes."""

import json
import math
from collections.abc import Mapping

Shape = tuple[int, ...]

# A Llama of one layer, and the shapes of all of its weights.
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4,
    "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_SHAPES: Mapping[str, Shape] = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.mlp.down_proj.weight": (4, 6),
    "model.layers.0.mlp.gate_proj.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.post_attention_layernorm.weight": (4,),
    "model.layers.0.self_attn.k_proj.weight": (2, 4),
    "model.layers.0.self_attn.o_proj.weight": (4, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.v_proj.weight": (2, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}


def safetensors_of(shapes: Mapping[str, Shape]) -> bytes:
    """A safetensors file in fp32."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)

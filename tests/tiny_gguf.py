"""A GGUF file of a tiny Llama, with its tokenizer inside."""

import json
from pathlib import Path

import numpy as np
from zero_weights import LLAMA, LLAMA_SHAPES

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "model.layers.": "blk.",
}


def write_gguf(file: Path, tokenizer_dir: Path, license_name: str = "mit") -> Path:
    """Write a Llama of one layer whose weights count up.

    Args:
        file: Where to.
        tokenizer_dir: A tokenizer of the kind that GPT-2 has.
        license_name: What it says of its license.
    """
    from gguf import GGUFWriter

    model = json.loads((tokenizer_dir / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_license(license_name)
    writer.add_context_length(64)
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_head_count(LLAMA["num_attention_heads"])
    writer.add_head_count_kv(LLAMA["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, shape in LLAMA_SHAPES.items():
        rows = (len(tokens), *shape[1:]) if shape[0] == LLAMA["vocab_size"] else shape
        writer.add_tensor(_in_gguf(name), np.arange(np.prod(rows), dtype=np.float32).reshape(rows) / 1000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _in_gguf(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name

"""Whether packed examples are kept apart: asked of the families that configs/ names, and of models that fail."""

import pytest
import torch

from thriftune.errors import ConfigError
from thriftune.models.separation import leakage, require_separation

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "phi3": {"pad_token_id": 0},
}


def make(family, attention="sdpa", **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family], **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for weight in model.parameters():  # fresh weights are so small that attention changes next to nothing
        weight.data *= 5
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_these_families_keep_packed_examples_apart(family, attention):
    model = make(family, attention)
    assert leakage(model) < 1e-5
    require_separation(model)


def test_a_model_that_ignores_positions_in_its_mask_is_refused():
    """Model code that brings its own causal mask sees the whole row, and nothing else says so."""
    model = make("llama")
    inner = model.model.forward

    def forward(*arguments, **options):
        return inner(*arguments, **{**options, "attention_mask": torch.ones_like(options["input_ids"])})

    model.model.forward = forward
    assert leakage(model) > 0.1
    with pytest.raises(ConfigError, match=r"data\.packing = true: this model \(llama\) lets packed examples see each"):
        require_separation(model)


def test_a_recurrent_model_is_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data *= 5
    with pytest.raises(ConfigError, match=r"data\.packing"):
        require_separation(model)

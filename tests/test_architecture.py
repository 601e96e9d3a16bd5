"""A model's shape from config.json alone, for more than Llama; and what cannot be one is refused with a reason."""

import json

import pytest

from thriftune.config import LoraConfig, ModelConfig
from thriftune.errors import ModelSourceError
from thriftune.methods.adapter_checks import require_targets
from thriftune.methods.adapters import adapter_parameters
from thriftune.models import architecture
from thriftune.models.quantization import FourBit
from thriftune.strategies.memory.activations import StepShape, measure

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128,
}  # fmt: skip
KINDS = {
    "llama": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4, "n_layer": 4},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "qwen2": {"num_key_value_heads": 2},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "qwen2_moe": {
        "num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 256, "mlp_only_layers": [0, 1],
        "shared_expert_intermediate_size": 64,
    },
    "gpt_oss": {
        "num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16, "rope_parameters": {"rope_type": "default"},
    },
    "deepseek_v2": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
    },
    "llama4_text": {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 64},
}  # fmt: skip


def shape_of(kind: str, **changes) -> architecture.Architecture:
    return architecture.from_content({"model_type": kind, **SIZES, **KINDS.get(kind, {}), **changes}, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("adapters", "four_bit"),
    [(None, None), (LoraConfig(rank=2, dropout=0.0), FourBit()), (LoraConfig(rank=2, dropout=0.0), None)],
)
def test_many_architectures_can_be_traced(kind, adapters, four_bit):
    """OPT and Bloom build positions from a mask of another shape; peft turned autocast off on the meta device."""
    activations = measure(shape_of(kind), StepShape(2, 32, True, "bf16", adapters, four_bit))
    assert len(activations.kept) == 4
    assert all(kept.all > 0 for kept in activations.kept)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v2", "llama4_text"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_mixtures_of_experts_can_be_traced_in_every_precision(kind, precision):
    """The meta device knows grouped products in bf16 only: on a CPU every mixture was refused."""
    step_shape = StepShape(2, 32, True, precision, LoraConfig(rank=2), FourBit())
    activations = measure(shape_of(kind, num_hidden_layers=3), step_shape)
    assert all(kept.all > 0 for kept in activations.kept)


def test_in_fp16_frozen_experts_cost_a_gradient_for_a_moment():
    """Without bf16 transformers computes experts in a loop, whose backward pass makes the gradient of all of them."""
    shape = shape_of("mixtral", num_local_experts=64)
    on_attention = LoraConfig(rank=2, target_modules=("q_proj",))
    bf16, fp16 = (measure(shape, StepShape(1, 32, True, precision, on_attention)) for precision in ("bf16", "fp16"))
    gradient = 2 * 64 * 2 * 64 * 32  # bytes of a number, experts, gate and up, intermediate and hidden size
    assert fp16.whole().all - bf16.whole().all > 0.9 * gradient


def test_layers_of_different_kinds_are_each_counted_as_they_are():
    """The layers after the first two were taken to be like them: half of what these keep."""
    mixed = measure(shape_of("qwen2_moe"), StepShape(2, 32, False, "bf16"))
    dense, experts = mixed.kept[1].all, mixed.kept[2].all
    assert mixed.kept[0].all == dense
    assert mixed.kept[3].all == experts
    assert experts > 1.3 * dense
    alike = measure(shape_of("qwen2_moe", mlp_only_layers=[]), StepShape(2, 32, False, "bf16"))
    assert alike.kept[1].all == pytest.approx(experts, rel=0.02)


def test_the_transposed_layers_of_gpt2_take_adapters():
    shape = shape_of("gpt2")
    assert shape.linear_shapes["transformer.h.0.attn.c_attn"] == (96, 32)
    require_targets(LoraConfig(target_modules=("c_attn",)), shape)
    assert sum(adapter_parameters(shape, LoraConfig(rank=2)).values()) > 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model_type": "lama"}, "model_type. 'lama'.*Similar names: llama"),
        ({"model_type": "llama", "hidden_size": 32}, "has no vocab_size, num_hidden_layers, num_attention_heads"),
        ({"model_type": "llama", **SIZES, "num_attention_heads": 0}, "config.json"),
        ({"model_type": "llama", **SIZES, "num_hidden_layers": -1}, "config.json"),
        ({"model_type": "llama", **SIZES, "hidden_size": 33}, "config.json"),
        ({"model_type": "xlnet", **SIZES}, r"cannot be used \(NotImplementedError"),
        ({"model_type": [1], **SIZES}, "of the wrong type"),
        ({"model_type": "llama", "text_config": None, **SIZES}, "of the wrong type"),
        ({"model_type": "bart", **SIZES, "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "llama", **SIZES, "quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_what_is_no_shape_of_a_model_is_refused(content, expected):
    with pytest.raises(ModelSourceError, match=expected):
        architecture.from_content(content, "broken")


NO_DECODER = {
    "bert": {},
    "roberta": {},
    "xlm": {"emb_dim": 32},
    "xlnet": {"d_model": 32},
    "bert-generation": {},
    "vit": {},
    "clip": {},
    "clip_text_model": {},
    "wav2vec2": {},
    "whisper": {},
    "llava": {"text_config": {"model_type": "llama", **SIZES}},
}


@pytest.mark.parametrize("kind", NO_DECODER)
def test_what_is_no_causal_language_model_is_said_to_be_none_in_a_line(kind):
    """BERT was trained as if it could not look ahead; of CLIP transformers' list of all its classes was shown."""
    sizes = {} if kind == "xlnet" else SIZES  # it has no longest input, and raises when it is given one
    with pytest.raises(ModelSourceError, match=r"not a causal language model. Use a decoder") as caught:
        _ = architecture.from_content({**sizes, "model_type": kind, **NO_DECODER[kind]}, kind).parameters
    assert len(str(caught.value)) < 400
    assert ("the llama model inside it" in str(caught.value)) == (kind == "llava")


def test_a_bert_that_is_a_decoder_is_one():
    assert shape_of("bert", is_decoder=True).parameters > 0


def test_a_model_without_attention_is_not_told_to_complete_its_configuration():
    sizes = {key: value for key, value in SIZES.items() if key != "num_attention_heads"}
    with pytest.raises(ModelSourceError, match="model_type mamba, which has no attention heads"):
        architecture.from_content({"model_type": "mamba", **sizes}, "mamba")


def test_layers_that_a_configuration_derives_are_not_missing():
    """Nemotron-H says its layers one by one; it was asked for their number."""
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    content = {"model_type": "nemotron_h", **sizes, "layers_block_type": ["attention", "moe"]}
    assert architecture.from_content(content, "hybrid").layers == 2


@pytest.mark.parametrize("changes", [{"hidden_act": "nonsense"}, {"pad_token_id": 1000}])
def test_what_cannot_be_built_is_refused(changes):
    with pytest.raises(ModelSourceError, match="no causal language model can be built"):
        _ = shape_of("llama", **changes).parameters


@pytest.mark.parametrize("text", [b"{broken", b"\xff\xfe\x00", b"[" * 100_000, b"[1]"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelSourceError, match="its config.json is not"):
        architecture.of(ModelConfig(source=str(tmp_path)))


def test_a_directory_is_read_and_a_missing_one_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    assert architecture.of(ModelConfig(source=str(tmp_path))).layers == 4
    with pytest.raises(ModelSourceError, match=r"model\.source = \./nowhere: does not exist"):
        architecture.of(ModelConfig(source="./nowhere"))

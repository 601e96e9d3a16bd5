"""Weights that are missing are refused by name, before and after a model is loaded; legal checkpoints are not."""

import json
import re
import shutil
from pathlib import Path

import pytest
from zero_weights import LLAMA, LLAMA_SHAPES, safetensors_of

from thriftune.errors import ModelSourceError
from thriftune.models import completeness
from thriftune.models.architecture import from_content
from thriftune.models.completeness import load_causal_lm, require_complete, require_fit

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {**LLAMA, "tie_word_embeddings": True}
SIZES = {
    "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2,
}  # fmt: skip
MIXTRAL = {**SIZES, "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
OTHERS = {
    "Qwen2": {**SIZES, "model_type": "qwen2"},
    "Gemma": {**SIZES, "model_type": "gemma"},
    "GPT-2": {"model_type": "gpt2", "vocab_size": 8, "n_embd": 4, "n_layer": 2, "n_head": 2, "n_positions": 8},
    "Mixtral, fused": MIXTRAL,
}


def fit(content, shapes):
    return require_fit(from_content(content, "my-model"), dict(shapes), "my-model")


def refusal(content, shapes):
    with pytest.raises(ModelSourceError) as caught:
        fit(content, shapes)
    return str(caught.value)


def without(*names):
    return {name: shape for name, shape in LLAMA_SHAPES.items() if name not in names}


def per_expert_shapes():
    """Mixtral as it is on the hub: each expert's matrices under names of their own."""
    shapes = {EMBEDDING: (8, 4), HEAD: (8, 4), "model.norm.weight": (4,)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}{norm}_layernorm.weight": (4,) for norm in ("input", "post_attention")}
        attention = {"q": (4, 4), "k": (2, 4), "v": (2, 4), "o": (4, 4)}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
        shapes[f"{layer}block_sparse_moe.gate.weight"] = (2, 4)
        for expert in (0, 1):
            matrices = {"w1": (6, 4), "w2": (4, 6), "w3": (6, 4)}
            prefix = f"{layer}block_sparse_moe.experts.{expert}."
            shapes |= {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
    return shapes


def test_a_whole_checkpoint_fits():
    assert fit(LLAMA, LLAMA_SHAPES) == ()


@pytest.mark.parametrize("family", OTHERS)
def test_the_weights_of_other_families_fit(family):
    assert fit(OTHERS[family], from_content(OTHERS[family], family).shapes) == ()


@pytest.mark.parametrize("shapes", [LLAMA_SHAPES, without(HEAD), without(EMBEDDING)], ids=["both", "one", "the other"])
def test_a_tied_head_may_be_in_the_file_or_not(shapes):
    assert fit(TIED, shapes) == ()


def test_names_without_the_prefix_of_the_base_model_fit():
    """As GPT-2's on the hub, which were saved without their head."""
    assert fit(TIED, {name.removeprefix("model."): shape for name, shape in without(HEAD).items()}) == ()
    bare = from_content(OTHERS["GPT-2"], "gpt2").shapes
    assert fit(OTHERS["GPT-2"], {name.removeprefix("transformer."): shape for name, shape in bare.items()}) == ()


def test_experts_under_names_of_their_own_fit():
    assert fit(MIXTRAL, per_expert_shapes()) == ()


def test_tables_of_rotary_embeddings_that_older_versions_saved_are_nothing_to_speak_of():
    assert fit(LLAMA, {**LLAMA_SHAPES, "model.layers.0.self_attn.rotary_emb.inv_freq": (1,)}) == ()


def test_what_a_model_has_no_place_for_is_said(caplog):
    assert fit(LLAMA, {**LLAMA_SHAPES, "value_head.weight": (1, 4)}) == ("value_head.weight",)
    assert "my-model: the model has no place for value_head.weight" in caplog.text


def test_a_head_that_is_missing_is_refused():
    """The run trained a random one, and ended well."""
    text = refusal(LLAMA, without(HEAD))
    assert "model.source = my-model: 1 of 12 weights are missing, such as lm_head.weight." in text
    assert "tie_word_embeddings: true" in text


def test_more_layers_than_there_are_weights_are_refused():
    text = refusal({**LLAMA, "num_hidden_layers": 3}, LLAMA_SHAPES)
    assert "18 of 30 weights are missing, such as model.layers.1.input_layernorm.weight, " in text
    assert "config.json" in text


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("_orig_mod.", "`_orig_mod.`, left by torch.compile"),
        ("module.", "`module.`, left by DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "left by FSDP"),
        ("base_model.model.", "left by peft"),
        ("model._checkpoint_wrapped_module.", "left by activation checkpointing"),
    ],
)
def test_a_wrapper_that_was_saved_with_the_model_is_named(prefix, cause):
    text = refusal(LLAMA, {f"{prefix}{name}": shape for name, shape in LLAMA_SHAPES.items()})
    assert "12 of 12 weights are missing" in text
    assert cause in text
    assert "Unwrap the model" in text


def test_a_wrapper_inside_the_names_is_named():
    shapes = {name.replace("model.", "model.module."): shape for name, shape in LLAMA_SHAPES.items()}
    assert "`module.`, left by DistributedDataParallel" in refusal(LLAMA, shapes)


def test_an_adapter_that_was_never_merged_is_to_be_merged():
    shapes = {f"base_model.model.{name}": shape for name, shape in LLAMA_SHAPES.items()}
    q = "base_model.model.model.layers.0.self_attn.q_proj."
    shapes |= {f"{q}base_layer.weight": shapes.pop(f"{q}weight"), f"{q}lora_A.default.weight": (2, 4)}
    assert "Merge the adapter into the model" in refusal(LLAMA, shapes)


def test_weights_of_another_shape_are_named_with_both():
    text = refusal({**LLAMA, "vocab_size": 9}, LLAMA_SHAPES)
    assert "lm_head.weight is 8x4 and should be 9x4, model.embed_tokens.weight is 8x4 and should be 9x4" in text


@pytest.mark.parametrize("lost", ["1.w1", "1.w", "."], ids=["a matrix", "an expert", "all experts"])
def test_experts_that_are_missing_are_refused(lost):
    lost_name = f"layers.1.block_sparse_moe.experts.{lost}".replace("..", ".")
    assert refusal(MIXTRAL, {name: shape for name, shape in per_expert_shapes().items() if lost_name not in name})


@pytest.fixture
def model_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(safetensors_of(LLAMA_SHAPES))
    return tmp_path


def test_a_whole_directory_is_loaded(model_dir):
    assert require_complete(model_dir, "my-model") is None
    assert load_causal_lm(model_dir).num_parameters() == 4 * 8 * 2 + 4 * 3 + 6 * 4 * 3 + 4 * 4 * 2 + 2 * 4 * 2


def test_weights_missing_from_a_directory_are_refused_before_and_after_loading(model_dir):
    """from_pretrained fills them with random numbers, says so in a table, and goes on."""
    (model_dir / "model.safetensors").write_bytes(safetensors_of(without(HEAD, "model.norm.weight")))
    for load in (lambda: require_complete(model_dir, str(model_dir)), lambda: load_causal_lm(model_dir)):
        with pytest.raises(ModelSourceError, match="2 of 12 weights are missing, such as lm_head.weight, model.norm"):
            load()


def test_only_safetensors_are_read_where_there_are_pickles_too(model_dir):
    (model_dir / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert float(load_causal_lm(model_dir).lm_head.weight.abs().sum()) == 0
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match=r"has neither model\.safetensors"):
        load_causal_lm(model_dir)


def test_a_directory_with_an_adapter_beside_the_model_is_refused(tiny_model_dir, random_adapter, tmp_path):
    """transformers put the adapter on the model unasked."""
    both = tmp_path / "both"
    shutil.copytree(tiny_model_dir, both)
    shutil.copytree(random_adapter(1), both, dirs_exist_ok=True)
    with pytest.raises(ModelSourceError, match="holds an adapter next to the model"):
        load_causal_lm(both)


def test_an_adapter_is_no_model(random_adapter):
    """transformers loaded the model that the adapter names in its place, from wherever that is."""
    with pytest.raises(ModelSourceError, match="is an adapter, not a model"):
        load_causal_lm(random_adapter(1))


def test_models_and_adapters_are_loaded_in_one_place_each():
    """Every other call would take random weights for the model's own again."""
    calls = re.compile(r"(?:CausalLM|PeftModel|model_class)\.from_pretrained\(")
    package = Path(completeness.__file__).parent
    files = {file.name: file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    made = {name: [line for line in text.splitlines() if calls.search(line)] for name, text in files.items()}
    assert {name: len(lines) for name, lines in made.items() if lines} == {
        "completeness.py": 1,
        "adapter_weights.py": 1,
    }

"""GGUF files of every architecture that is covered, read back; and what is not covered is refused by name."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporting.exported_models import CHATML, MODELS, bytes_tokenizer, save_model
from thriftune.data.questions import prompt_style
from thriftune.disk import DiskFullError, writing_to
from thriftune.errors import ExportError
from thriftune.inference.parity import checking, reference, rows
from thriftune.models.exporting import exports, gguf_writing
from thriftune.models.exporting.gguf_reading import GgufFile
from thriftune.models.tokenizer import load_tokenizer

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0")


def asked_of(model_dir):
    tokenizer = load_tokenizer(model_dir)
    pairs = [("What is the capital of France?", "Paris, in 2026."), ("What colour is the sky?", "The sky is blue.")]
    return rows.of_pairs(pairs, tokenizer, prompt_style(model_dir, tokenizer))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_what_was_exported(model_of, tmp_path, name):
    model_dir = model_of(name)
    trained = reference.of_directory(model_dir, asked_of(model_dir))
    for kind in FORMATS:
        folder = tmp_path / kind
        folder.mkdir()
        exports.write(kind, model_dir, folder, name, 1.0)
        found = checking.check(trained, folder, kind)
        assert found.passes, found.sentence
        assert found.tokens > 10
        by_name = {measure.name: measure.value for measure in found.measures}
        assert 0 < by_name["largest error of a weight"] < {"gguf-f16": 1e-3, "gguf-q8_0": 0.01, "gguf-q4_0": 0.2}[kind]
        assert by_name["KL divergence of the next token, nats"] < {"gguf-f16": 1e-5}.get(kind, 0.5)


def test_rows_that_no_block_divides_stay_in_16_bits_and_that_is_said(model_of, tmp_path):
    odd = save_model(tmp_path / "odd", "llama", bytes_tokenizer("gpt-2"), {"intermediate_size": 100})
    (tmp_path / "out").mkdir()
    said = exports.write("gguf-q4_0", odd, tmp_path / "out", "odd", 1.0)
    assert "blk.0.ffn_down.weight and 1 more stayed in 16 bits: rows are no multiple of 32 weights." in said
    assert "output.weight and token_embd.weight are in q8_0." in said or (
        "token_embd.weight and output.weight are in q8_0." in said
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt_neox"}, "is of architecture gpt_neox, .*Covered are llama, mistral, qwen2, qwen3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type yarn"),
        (
            {"model_type": "qwen3", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling of type llama3",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling of type dynamic"),
        ({"attention_bias": True}, "attention_bias: true"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"use_sliding_window": True}, "use_sliding_window: true"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(changes, reason):
    content = {"model_type": "llama", **changes}
    (problem,) = exports.problems_of(("fp16", "gguf-f16", "gguf-q8_0"), content, "owner/model")
    with pytest.raises(ExportError, match=reason):
        raise ExportError([problem])
    assert problem.value == "gguf-f16, gguf-q8_0"
    assert not list(exports.problems_of(("fp16", "int8"), content, "owner/model"))


def test_a_window_of_attention_that_llama_cpp_does_not_have_is_said(model_of, tmp_path):
    copy = shutil.copytree(model_of("mistral"), tmp_path / "model")
    file = copy / "config.json"
    for window, said in ((64, 1), (None, 0), (256, 0)):
        file.write_text(json.dumps({**json.loads(file.read_text()), "sliding_window": window}))
        remarks = exports.write("gguf-f16", copy, tmp_path, "m", 1.0)
        assert len([remark for remark in remarks if "not 64 alone" in remark]) == said


def test_a_weight_beyond_16_bits_is_refused_by_name(model_of, tmp_path):
    model_dir = shutil.copytree(model_of("qwen2"), tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    for kind in ("gguf-f16", "fp16"):
        (tmp_path / kind).mkdir()
        with pytest.raises(ExportError, match=r"layers.1.mlp.up_proj.weight has a weight of 7e\+04"):
            exports.write(kind, model_dir, tmp_path / kind, "m", 1.0)


def test_a_head_of_its_own_that_config_json_denies_is_refused(model_of, tmp_path):
    """The file had no head; where there was no memory to run the model, that passed."""
    model_dir = shutil.copytree(model_of("llama"), tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    for factor, is_own in ((1.0, False), (3.0, True)):
        weights["lm_head.weight"] = factor * weights["model.embed_tokens.weight"]
        save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
        exports.require_weights(("fp16", "int8"), model_dir)
        if is_own:
            with pytest.raises(ExportError, match="lm_head.weight that is not its embedding.*Set tie_word_embeddings"):
                exports.require_weights(("fp16", "gguf-f16"), model_dir)
            with pytest.raises(ExportError, match=r"lm_head\.weight that is not its embedding"):
                exports.write("gguf-f16", model_dir, tmp_path, "m", 1.0)
        else:
            exports.require_weights(("gguf-f16",), model_dir)


def test_the_factors_of_llama_3_are_those_of_transformers(model_of):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from thriftune.models.exporting.gguf_architectures import rope_factors

    config = AutoConfig.from_pretrained(model_of("llama3"))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(rope_factors(config), (plain / scaled).numpy(), rtol=1e-5)
    assert len(set(rope_factors(config).tolist())) > 2  # those that stay, those between, and those divided by 8


def test_large_tensors_are_written_in_parts(model_of, tmp_path, monkeypatch):
    """A part is a few rows; queries and keys have theirs in another order."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        gguf_writing.write(model_of("llama"), folder, "q8_0", "m")
        monkeypatch.setattr(gguf_writing, "_PART_BYTES", 4 * 64 * 7)
    assert (whole / "model.gguf").read_bytes() == (parts / "model.gguf").read_bytes()


def test_a_full_disk_is_known_for_one(model_of, tmp_path):
    """numpy's own writer says `4096 requested and 1024 written`, which no attempt on another node followed."""
    (half := tmp_path / "half").mkdir()
    exports.write("fp16", model_of("llama"), half, "m", 1.0)
    before, size = resource.getrlimit(resource.RLIMIT_FSIZE), (half / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # among the weights: the vocabulary comes first
    try:
        with pytest.raises(DiskFullError, match="a file became larger than"), writing_to(tmp_path / "out", "exporting"):
            gguf_writing.write(half, tmp_path, "f16", "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_names_template_special_tokens_and_what_ends_a_turn(model_of, tmp_path):
    gguf_writing.write(model_of("llama"), tmp_path, "f16", "mistral")
    file = GgufFile(tmp_path / "model.gguf")
    tokenizer = load_tokenizer(model_of("llama"))
    assert file.template == CHATML
    assert file.value("tokenizer.ggml.pre") == "smollm"
    assert file.value("tokenizer.ggml.add_bos_token") is False
    assert file.stops == (tokenizer.eos_token_id,)
    config = json.loads((model_of("llama") / "config.json").read_text())
    assert file.setting("rope.freq_base") == config["rope_parameters"]["rope_theta"]

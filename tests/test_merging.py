"""A merged model says what the base model says with the adapter on it, and needs nothing of ours to load."""

import json

import pytest

from thriftune import artifacts
from thriftune.errors import AdapterError
from thriftune.merging import merge


@pytest.fixture
def tokens():
    import torch

    return torch.arange(4, 24).reshape(2, 10)


def logits_of(model, tokens):
    import torch

    with torch.inference_mode():
        return model.eval()(tokens).logits


def base(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32")


def test_merged_weights_say_what_the_adapter_says(tiny_model_dir, random_adapter, tokens, tmp_path):
    import torch
    from peft import PeftModel

    adapter = random_adapter(seed=3)
    merge(tiny_model_dir, adapter, tmp_path / "merged")
    plain = logits_of(base(tiny_model_dir), tokens)
    with_adapter = logits_of(PeftModel.from_pretrained(base(tiny_model_dir), str(adapter)), tokens)
    merged = logits_of(base(tmp_path / "merged"), tokens)
    assert float((with_adapter - plain).abs().max()) > 0.01, "the adapter changes nothing, so this test could not fail"
    torch.testing.assert_close(merged, with_adapter, atol=1e-3, rtol=0)


def test_a_merged_model_is_an_ordinary_one(tiny_model_dir, random_adapter, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge(tiny_model_dir, random_adapter(seed=1), tmp_path / "merged")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in names
    assert not any("adapter" in name or name.endswith(".bin") for name in names)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any("lora" in name for name, _ in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")


@pytest.mark.parametrize(("save_dtype", "stored"), [("auto", "F32"), ("bf16", "BF16"), ("fp16", "F16")])
def test_weights_are_saved_in_the_precision_that_is_asked_for(
    tiny_model_dir, random_adapter, tmp_path, save_dtype, stored
):
    merge(tiny_model_dir, random_adapter(seed=1), tmp_path / "merged", save_dtype=save_dtype)
    content = (tmp_path / "merged" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {stored}


def test_the_manifest_carries_the_run_over(tiny_model_dir, random_adapter, tmp_path):
    merge(tiny_model_dir, random_adapter(seed=1), tmp_path / "merged")
    manifest = artifacts.read_manifest(tmp_path / "merged")
    assert (manifest["kind"], manifest["merged_from"]) == ("model", "adapter")
    assert manifest["config"] == {"name": "random"}
    assert manifest["dataset_fingerprint"] == "f"


def test_an_adapter_that_was_made_elsewhere_can_be_merged(tiny_model_dir, random_adapter, tmp_path):
    adapter = random_adapter(seed=1)
    (adapter / artifacts.MANIFEST).unlink()
    merge(tiny_model_dir, adapter, tmp_path / "merged")
    assert artifacts.read_manifest(tmp_path / "merged")["merged_from"] == "adapter"


def test_a_directory_without_an_adapter_leaves_no_model(tiny_model_dir, tmp_path):
    (tmp_path / "no-adapter").mkdir()
    with pytest.raises(AdapterError, match=r"adapter = .*no-adapter: has no adapter_config\.json"):
        merge(tiny_model_dir, tmp_path / "no-adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()

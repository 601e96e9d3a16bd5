"""A merge in little memory writes, bit for bit, what peft's own merge of the whole model holds, in the base's files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from thriftune.errors import AdapterError
from thriftune.models import merging
from thriftune.models.merging import mapped, merge
from thriftune.models.merging.comparing import in_fp32
from thriftune.models.merging.shards import InShards, layout_of
from thriftune.models.merging.sums import put_on
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import HeldOut

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ALL, **options})


# Kinds of base models, whether their embeddings are tied, and adapters on them.
CASES: dict[str, tuple[str, bool, Callable[[], Any]]] = {
    "lora": ("llama", False, lora),
    "dora": ("llama", False, lambda: lora(use_dora=True)),
    "rslora, other ranks": ("llama", False, lambda: lora(use_rslora=True, rank_pattern={"v_proj": 2})),
    "whole modules": ("llama", False, lambda: lora(modules_to_save=["lm_head", "embed_tokens"])),
    "a whole container": ("llama", False, lambda: lora(target_modules=["q_proj"], modules_to_save=["mlp"])),
    "embeddings and head": ("llama", False, lambda: lora(target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "some tokens": ("llama", False, lambda: lora(trainable_token_indices={"embed_tokens": [3, 5]})),
    "some tokens of tied": ("llama", True, lambda: lora(trainable_token_indices={"embed_tokens": [3, 5]})),
    "tied": ("llama", True, lora),
    "biases": ("qwen2", False, lambda: lora(bias="all")),
    "biases of adapted layers": ("qwen2", False, lambda: lora(bias="lora_only", target_modules=["q_proj", "o_proj"])),
    "biases of adapters": ("qwen2", False, lambda: lora(lora_bias=True, target_modules=["q_proj", "v_proj"])),
    "transposed": ("gpt2", True, lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "ia3": (
        "llama",
        False,
        lambda: IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
}


def config_of(kind: str, *, tied: bool) -> Any:
    if kind == "gpt2":
        return GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    cls = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    return cls(**SIZES, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied)


@pytest.fixture
def made(llama_tokenizer, tmp_path):
    """Makes a base model in several files, and an adapter on it whose parts are all random."""

    def make(kind: str, *, tied: bool, peft: Any, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
        torch.manual_seed(0)
        config = config_of(kind, tied=tied)
        config.vocab_size = len(llama_tokenizer)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
        llama_tokenizer.save_pretrained(tmp_path / "base")
        adapted = get_peft_model(model.float(), peft)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter"

    return make


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_peft(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


@pytest.mark.parametrize(("kind", "tied", "peft"), CASES.values(), ids=CASES)
def test_weights_are_those_of_peft_bit_for_bit(made, kind, tied, peft, tmp_path):
    base, adapter = made(kind, tied=tied, peft=peft())
    merge(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected, found = by_peft(base, adapter).state_dict(), merged.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert any(not torch.equal(before[name], found[name]) for name in before), "an adapter that does nothing"


def test_the_files_and_names_are_those_of_the_base(made, tmp_path):
    base, adapter = made("llama", tied=False, peft=lora())
    merge(base, adapter, tmp_path / "merged")
    layouts = [
        {file.name: sorted(load_file(file)) for file in folder.glob("*.safetensors")}
        for folder in (base, tmp_path / "merged")
    ]
    assert len(layouts[0]) > 3
    assert layouts[0] == layouts[1]
    indices = [
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (base, tmp_path / "merged")
    ]
    assert indices[0]["weight_map"] == indices[1]["weight_map"]
    assert indices[0]["metadata"]["total_size"] == indices[1]["metadata"]["total_size"]


def test_sums_are_rounded_once(made, tmp_path):
    """As peft merges a layer in fp32: in 16 bits it rounds the adapter's part, and then the sum."""
    base, adapter = made("llama", tied=False, peft=lora(modules_to_save=["lm_head"]), dtype=torch.bfloat16)
    merge(base, adapter, tmp_path / "merged")
    expected = by_peft(base, adapter).state_dict()
    found = weights_in(tmp_path / "merged")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name].bfloat16())] == []


def test_fp32_of_a_base_in_16_bits_rounds_nothing(made, tmp_path):
    base, adapter = made("qwen2", tied=False, peft=lora(bias="all", modules_to_save=["lm_head"]), dtype=torch.bfloat16)
    merge(base, adapter, tmp_path / "merged", save_dtype="fp32")
    expected, found = by_peft(base, adapter).state_dict(), weights_in(tmp_path / "merged")
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_weights_that_were_one_are_written_apart_where_one_of_them_changed(made, target, tmp_path):
    """peft's merge changes both: the merged model was another than the trained one."""
    base, adapter = made("llama", tied=True, peft=lora(target_modules=[target, "q_proj"]))
    tokens = torch.arange(4, 24).reshape(2, 10)
    merge(base, adapter, tmp_path / "merged")
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
        expected = adapted(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        found = merged(tokens).logits
        wrong = by_peft(base, adapter).eval()(tokens).logits
    assert not merged.config.tie_word_embeddings
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float((wrong - expected).abs().max()) > 1e-3


ON_TIED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "neither": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
@pytest.mark.parametrize("options", ON_TIED.values(), ids=ON_TIED)
def test_they_are_written_apart_too_where_the_model_is_held_as_a_whole(made, options, mode, monkeypatch, tmp_path):
    """There peft's merge changed both; and numbers kept in fp32 were rounded stochastically, to an error."""
    monkeypatch.setattr(merging, "is_of_single_weights", lambda _: False)
    monkeypatch.setattr(merging.comparing, "written_as_trained", lambda _, __, write, *___: write(mode))
    base, adapter = made("llama", tied=True, peft=lora(**options), dtype=torch.bfloat16)
    merge(base, adapter, tmp_path / "merged")
    tokens = torch.arange(4, 24).reshape(2, 10)
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), str(adapter))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        found, expected = merged.float().eval()(tokens).logits, adapted.eval()(tokens).logits
    assert merged.config.tie_word_embeddings is (options is ON_TIED["neither"])
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_what_cannot_be_measured_is_merged_and_said(made, caplog, tmp_path):
    """peft adds trained tokens to a head that is the embedding, in 16 bits: the run ended with torch's error."""
    options = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}
    base, adapter = made("llama", tied=True, peft=lora(**options), dtype=torch.bfloat16)
    rows = Dataset.from_dict({"input_ids": [[4, 5, 6]], "labels": [[4, 5, 6]], "length": [3]})
    assert merge(base, adapter, tmp_path / "merged", held_out=HeldOut(rows, load_tokenizer(base), 1)) is None
    assert "cannot be compared with the adapter on its base" in caplog.text
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()


def test_names_that_transformers_changes_while_it_loads_are_followed(made, tmp_path):
    """Files of a model without its head lack the prefix of every name."""
    base, adapter = made("gpt2", tied=True, peft=lora(target_modules=["c_attn"], fan_in_fan_out=True))
    expected = by_peft(base, adapter).state_dict()

    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights_in(base).items()}
    for file in base.glob("*.safetensors*"):
        file.unlink()
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    merge(base, adapter, tmp_path / "merged")
    assert weights_in(tmp_path / "merged").keys() == bare.keys()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_only_models_whose_weights_are_converted_are_held_as_a_whole(made):
    from transformers import MixtralConfig

    base, _ = made("llama", tied=True, peft=lora())
    assert layout_of(mapped.load(base)) is not None
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2))
    model.save_pretrained(base.parent / "mixture")
    load_tokenizer(base).save_pretrained(base.parent / "mixture")
    assert layout_of(mapped.load(base.parent / "mixture")) is None


def test_what_adds_to_no_weight_is_not_merged(made, tmp_path):
    base, adapter = made("llama", tied=False, peft=PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(AdapterError, match=r"adapter = .*adapter: is of type PREFIX_TUNING, which cannot be merged"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_stay_in_their_files_until_they_are_used(made):
    base, _ = made("llama", tied=False, peft=lora())
    loaded = mapped.load(base)
    assert loaded.ranges
    weight = loaded.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    loaded.release(weight)
    assert torch.equal(weight, before), "what was forgotten is read again"
    with torch.no_grad():
        weight.zero_()
    loaded.find_ranges()
    loaded.release(weight)
    assert not weight.any(), "what was written to is not forgotten"


def resident(files: tuple[Path, ...]) -> int:
    """KiB of files that are in this process's memory."""
    count, wanted, names = 0, False, {str(file.resolve()) for file in files}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            wanted = line.split()[-1] in names
        elif wanted and line.startswith("Rss:"):
            count += int(line.split()[1])
    return count


def test_what_was_written_or_computed_with_is_not_held(llama_tokenizer, tmp_path):
    """The whole model was: merging 70B asked for 159 GiB."""
    config = LlamaConfig(**SIZES | {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 512})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="4MB")
    llama_tokenizer.save_pretrained(tmp_path / "base")
    get_peft_model(model, lora(use_dora=True)).save_pretrained(tmp_path / "adapter")
    loaded = mapped.load(tmp_path / "base")
    layout, sums = layout_of(loaded), put_on(loaded.model, tmp_path / "adapter")
    loaded.find_ranges()
    way = InShards(loaded, sums, layout, torch.bfloat16, 0)
    whole = sum(file.stat().st_size for file in loaded.files) // 1024
    assert resident(loaded.files) > whole / 2, "DoRA reads every weight at first"
    (tmp_path / "merged").mkdir()
    way.write(tmp_path / "merged", "nearest")
    assert resident(loaded.files) < whole / 4  # the system maps 64 KiB around what is read
    with in_fp32(sums.adapted, loaded):
        sums.adapted(torch.arange(8)[None])
    assert resident(loaded.files) < whole / 4  # the system maps 64 KiB around what is read


def test_numbers_that_are_none_are_not_saved(made, tmp_path):
    base, adapter = made("llama", tied=False, peft=lora())
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][3, 1] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"adapter = model\.layers\.1\.mlp\.up_proj\.weight: has numbers"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("name", "experts"),
    [("model.norm.weight", False), ("model.layers.1.mlp.up_proj.weight", False), ("model.norm.weight", True)],
)
def test_numbers_that_fp16_cannot_hold_are_not_saved(made, monkeypatch, tmp_path, name, experts):
    """Of weights that the adapter leaves alone, and of sums, they became infinite without a word."""
    base, adapter = made("llama", tied=False, peft=lora(), dtype=torch.bfloat16)
    for file in base.glob("*.safetensors"):
        weights = load_file(file)
        if name in weights:
            weights[name].view(-1)[3] = 1e5
            save_file(weights, file, metadata={"format": "pt"})
    if experts:  # a model that is held as a whole is written in another way
        monkeypatch.setattr(merging, "is_of_single_weights", lambda _: False)
    with pytest.raises(AdapterError, match=rf"adapter = {name}: has .* not finite in float16 .* bf16 or fp32"):
        merge(base, adapter, tmp_path / "merged", save_dtype="fp16")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        ("float64", torch.float32),
        ("auto", torch.float32),
    ],
)
def test_the_type_is_one_that_models_are_computed_in(tmp_path, named, expected):
    """A base in float64 was merged, and then the run ended with a KeyError."""
    (tmp_path / "config.json").write_text(json.dumps({"dtype": named}))
    assert mapped.asked_dtype(tmp_path, torch.float32) == expected


def test_a_file_that_only_config_json_names_becomes_the_usual_one(made, tmp_path):
    base, adapter = made("llama", tied=False, peft=lora())
    expected = by_peft(base, adapter).state_dict()
    save_file(weights_in(base), tmp_path / "odd.safetensors", metadata={"format": "pt"})
    for file in base.glob("*.safetensors*"):
        file.unlink()
    (tmp_path / "odd.safetensors").rename(base / "odd.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "odd.safetensors"}))
    merge(base, adapter, tmp_path / "merged")
    assert [file.name for file in (tmp_path / "merged").glob("*.safetensors")] == ["model.safetensors"]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

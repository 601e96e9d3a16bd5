"""A merged model says what the base model says with the adapter on it, and needs nothing of ours to load."""

import json

import pytest

from thriftune import artifacts
from thriftune.config import DataConfig, LoraConfig
from thriftune.data import prepare
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.errors import AdapterError
from thriftune.inference.parity.allowed import ALLOWED
from thriftune.inference.parity.outputs import log_probabilities
from thriftune.inference.parity.rows import Row
from thriftune.methods.adapters import peft_config
from thriftune.models import next_tokens, saving
from thriftune.models.merging import merge
from thriftune.models.merging.comparing import COMPARED_OPERATIONS
from thriftune.models.next_tokens import compare
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.collation import PaddingCollator
from thriftune.training.held_out import HeldOut, held_out_loss, held_out_rows


def rows_of(model_dir, dataset):
    return HeldOut(held_out_rows(dataset, 64), load_tokenizer(model_dir), 8)


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


@pytest.fixture(scope="module")
def in_bf16(tiny_model_dir, chat_rows_file, tmp_path_factory):
    """The tiny model as base models are stored, and a dataset prepared for it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bf16")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(folder / "model")
    load_tokenizer(tiny_model_dir).save_pretrained(folder / "model")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.2)
    prepare.prepare(data, seed=0, tokenizer_dir=folder / "model", destination=folder / "dataset")
    return folder / "model", folder / "dataset"


@pytest.fixture
def mixture(in_bf16, tmp_path):
    """A tiny Mixtral in bf16, an adapter that changes its fused experts, and the dataset."""
    import torch
    from peft import get_peft_model
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = load_tokenizer(in_bf16[0])
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=256, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    adapted = get_peft_model(model, peft_config(LoraConfig(rank=4, alpha=8, dropout=0.0)))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "mixture", tmp_path / "adapter", in_bf16[1]


def held_out(model, in_bf16):
    rows = load_split(in_bf16[1], VALIDATION)
    return held_out_loss(model.eval(), load_tokenizer(in_bf16[0]), rows, batch=4)[0]


def test_the_sum_is_compared_with_the_adapter_on_the_same_base(in_bf16, random_adapter, tmp_path, caplog):
    from peft import PeftModel

    adapter = random_adapter(seed=3)
    with caplog.at_level("WARNING"):
        compared = merge(in_bf16[0], adapter, tmp_path / "merged", held_out=rows_of(*in_bf16))
    assert (compared.dtype, compared.rounding, compared.rows) == ("bf16", "nearest", 12)
    with_adapter = PeftModel.from_pretrained(base(in_bf16[0]), str(adapter))
    assert compared.base_loss == pytest.approx(held_out(base(in_bf16[0]), in_bf16), abs=1e-6)
    assert compared.trained_loss == pytest.approx(held_out(with_adapter, in_bf16), abs=1e-6)
    assert compared.saved_loss == pytest.approx(held_out(base(tmp_path / "merged"), in_bf16), abs=1e-6)
    assert abs(compared.trained_loss - compared.base_loss) > 0.01, "an adapter that does nothing compares to anything"
    assert not caplog.text


@pytest.fixture
def barely_trained(in_bf16, tmp_path):
    """An adapter after a few small steps: together they show, and each weight moved less than bf16 can."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(base(in_bf16[0]), peft_config(LoraConfig(rank=16, alpha=32, dropout=0.0)))
    rows, collate = load_split(in_bf16[1], VALIDATION), PaddingCollator(load_tokenizer(in_bf16[0]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=4e-6)
    for _ in range(6):
        adapted(**collate(list(rows))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_too_small_for_the_nearest_numbers_is_rounded_stochastically(
    in_bf16, barely_trained, tmp_path, caplog
):
    """What it added was less than half the spacing of bf16 for most weights: merged, it was gone."""
    with caplog.at_level("INFO"):
        compared = merge(in_bf16[0], barely_trained, tmp_path / "merged", held_out=rows_of(*in_bf16))
    assert compared.rounding == "stochastic", caplog.text
    assert compared.base_loss - compared.trained_loss > 8e-4
    assert abs(compared.cost) < 0.3 * (compared.base_loss - compared.trained_loss)
    assert compared.saved_loss == pytest.approx(held_out(base(tmp_path / "merged"), in_bf16), abs=1e-5)


def test_next_tokens_are_compared_at_every_trained_position(in_bf16, random_adapter, tmp_path, caplog):
    """They were not: a loss may be the same where other tokens are likely."""
    from peft import PeftModel

    adapter = random_adapter(seed=3)
    with caplog.at_level("INFO"):
        compared = merge(in_bf16[0], adapter, tmp_path / "merged", held_out=rows_of(*in_bf16), tied=0.1)
    rows = [
        Row(tuple(row["input_ids"]), tuple(place for place, label in enumerate(row["labels"]) if place and label >= 0))
        for row in held_out_rows(in_bf16[1], 64)
    ]
    models = (PeftModel.from_pretrained(base(in_bf16[0]), str(adapter)).eval(), base(tmp_path / "merged").eval())
    reference, found = (list(log_probabilities(model, rows)) for model in models)
    expected = compare(reference, iter(found), 0.1)
    assert compared.next_tokens.tokens == expected.tokens > 100
    assert compared.next_tokens.kl == pytest.approx(expected.kl, abs=1e-6)
    assert compared.next_tokens.agreement == pytest.approx(expected.agreement, abs=2 / expected.tokens)
    assert 0 < expected.kl < 1e-3
    assert f"on {expected.tokens} tokens of these rows: KL divergence" in caplog.text
    assert artifacts.read_manifest(tmp_path / "merged")["merging"]["next_tokens"]["kl"] == compared.next_tokens.kl


def test_next_tokens_are_those_of_the_rounding_that_was_kept(in_bf16, random_adapter, tmp_path, monkeypatch):
    """Where stochastic rounding is tried and costs more, the model is written in the first way again."""
    kept, numbers = [], iter((0.1, 0.2))

    def measured(comparison):
        kept.append(next_tokens.Compared(1, 1, next(numbers), 1.0))
        return kept[-1]

    monkeypatch.setattr(next_tokens.Comparison, "compared", property(measured))
    monkeypatch.setattr(saving, "_NOISE", -1.0)  # nothing is good enough
    monkeypatch.setattr(saving, "TOLERATED_SHARE", -1e6)
    compared = merge(in_bf16[0], random_adapter(seed=3), tmp_path / "merged", held_out=rows_of(*in_bf16))
    assert len(kept) == 2
    assert compared.next_tokens == kept[0 if compared.rounding == "nearest" else 1]


def test_a_sum_that_is_not_what_was_trained_is_a_warning(in_bf16, random_adapter, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.get_delta_weight", lambda self, name: 0 * self.weight.float())
    with caplog.at_level("WARNING"):
        compared = merge(in_bf16[0], random_adapter(seed=3), tmp_path / "merged", held_out=rows_of(*in_bf16))
    assert compared.saved_loss == pytest.approx(compared.base_loss, abs=1e-5)
    assert "loses part of what was learnt" in caplog.text
    assert compared.next_tokens.kl > ALLOWED["merged"].kl


def test_fused_experts_are_merged_and_compared_too(mixture, tmp_path):
    model_dir, adapter, dataset = mixture
    compared = merge(model_dir, adapter, tmp_path / "merged", held_out=rows_of(model_dir, dataset))
    assert abs(compared.trained_loss - compared.base_loss) > 0.001
    assert compared.cost == pytest.approx(0, abs=1e-3)


def test_a_large_model_is_compared_on_one_row_and_a_small_one_on_all(in_bf16):
    rows = rows_of(*in_bf16)

    def compared_on(parameters):
        return len(rows.first_tokens(COMPARED_OPERATIONS / (2 * parameters)))

    assert compared_on(140_000) == len(rows) == 12
    assert compared_on(70_000_000_000) in range(1, 12)
    assert compared_on(10**15) == 1


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

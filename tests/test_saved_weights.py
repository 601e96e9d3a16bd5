"""What was trained is what is saved: the fp32 master weights, in every ZeRO stage, and by rounding that keeps them.

Real processes over gloo on the tiny model, stored in bf16 as base models are. What once broke: the weights that
DeepSpeed computes with were saved, rounded to bf16, and a short run's update was gone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import ranks
import torch

from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import held_out_loss

WORKER = Path(__file__).parent / "training_worker.py"
STEPS = 6
# Adam moves a weight by the learning rate at most in each step: less than half the spacing of bf16 for most weights.
LEARNING_RATE = 4e-6


@dataclass(frozen=True)
class Variant:
    ranks: int
    zero: str | dict
    save_dtype: str


VARIANTS = {
    "zero3, auto": Variant(2, "zero3", "auto"),
    "zero3, fp32": Variant(2, "zero3", "fp32"),
    "zero2, fp32": Variant(2, "zero2", "fp32"),
    "zero1, fp32": Variant(1, "zero1", "fp32"),
    "zero0, auto": Variant(1, {"zero_optimization": {"stage": 0}}, "auto"),
}


def run(variant: Variant, model: Path, dataset: Path, output: Path) -> dict:
    """Train a variant; what was measured."""
    config = {
        "name": "saved", "method": "full", "model": {"source": "tiny"}, "data": {"source": "rows", "format": "chat"},
        "hardware": {"device": "CPU", "devices_per_node": variant.ranks},
        "training": {
            "global_batch": 8, "micro_batch": 2, "max_steps": STEPS, "precision": "bf16",
            "log_every": 1, "learning_rate": LEARNING_RATE, "warmup_share": 0.1, "save_dtype": variant.save_dtype,
            "gradient_checkpointing": False,
        },
        "zero": {"config": variant.zero},
    }  # fmt: skip
    job = output.with_suffix(".job")
    places = {"model": str(model), "dataset": str(dataset), "output": str(output)}
    job.write_text(json.dumps([{"config": config, **places}]))
    ranks.run(variant.ranks, WORKER, job)
    return json.loads(Path(f"{output}.json").read_text())


@pytest.fixture(scope="module")
def stored_in_bf16(tiny_model_dir, tmp_path_factory):
    """The tiny model as base models are stored."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("bf16")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(directory)
    load_tokenizer(tiny_model_dir).save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_a_mixture_is_measured_before_it_trains(stored_in_bf16, chat_rows_file, tmp_path):
    """The experts that transformers joins are in memory of their own, and were zeros when they were read again."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = load_tokenizer(stored_in_bf16)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=256, dtype="bfloat16",
    )  # fmt: skip
    MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.2)
    prepare.prepare(data, seed=0, tokenizer_dir=stored_in_bf16, destination=tmp_path / "dataset")
    measured = run(Variant(1, "zero2", "auto"), tmp_path / "mixture", tmp_path / "dataset", tmp_path / "saved")
    for loss, directory in (("base_loss", "mixture"), ("saved_loss", "saved")):
        in_fp32 = loss_of(tmp_path / directory, tmp_path / "dataset")
        assert measured["saved"][loss] == pytest.approx(in_fp32, abs=1e-4), loss


@pytest.fixture(scope="module")
def runs(stored_in_bf16, chat_rows_file, tmp_path_factory):
    """Every variant, run once: what was measured, and its output directory."""
    folder = tmp_path_factory.mktemp("saved")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.2)
    prepare.prepare(data, seed=0, tokenizer_dir=stored_in_bf16, destination=folder / "dataset")
    results = {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        output = folder / f"run{number}"
        results[name] = run(variant, stored_in_bf16, folder / "dataset", output), output
    return results, folder / "dataset"


def weights(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def loss_of(directory, dataset):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return held_out_loss(model, load_tokenizer(directory), load_split(dataset, VALIDATION), batch=4)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3, fp32", "zero2, fp32", "zero1, fp32"])
def test_the_fp32_master_weights_are_saved_in_every_stage(runs, stored_in_bf16, name):
    results, _ = runs
    measured, saved = results[name]
    assert measured["saved"] is None, "nothing is rounded"
    base, trained = weights(stored_in_bf16), weights(saved)
    assert trained.keys() == base.keys()
    lost = changed = 0
    for key, weight in trained.items():
        assert weight.dtype == torch.float32
        changed += int((weight != base[key].float()).sum())
        lost += int((weight.bfloat16() == base[key]).sum())
    total = sum(weight.numel() for weight in trained.values())
    assert changed > 0.7 * total, "every weight trains, but for embeddings of tokens that no row holds"
    assert lost > 0.5 * total, "most changes are smaller than bf16 shows, or the test says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3, auto", "zero0, auto"])
def test_what_rounding_to_the_nearest_number_loses_is_kept_in_sixteen_bits(runs, stored_in_bf16, name):
    results, dataset = runs
    measured, saved = results[name]
    how = measured["saved"]
    assert (how["dtype"], how["rounding"]) == ("bf16", "stochastic")
    assert {w.dtype for w in weights(saved).values()} == {torch.bfloat16}
    improvement = how["base_loss"] - how["trained_loss"]
    assert improvement > 0.002
    assert how["saved_loss"] - how["trained_loss"] < 0.2 * improvement
    assert how["base_loss"] == pytest.approx(loss_of(stored_in_bf16, dataset), abs=1e-5)
    assert how["saved_loss"] == pytest.approx(loss_of(saved, dataset), abs=1e-5), "measured is what is saved"
    assert json.loads((saved / "manifest.json").read_text())["training"]["saved"] == how


@pytest.mark.slow
def test_the_loss_before_rounding_is_that_of_the_master_weights(runs):
    results, dataset = runs
    in_fp32 = loss_of(results["zero3, fp32"][1], dataset)
    assert results["zero3, auto"][0]["saved"]["trained_loss"] == pytest.approx(in_fp32, abs=1e-5)

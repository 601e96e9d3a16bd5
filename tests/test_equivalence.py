"""The same run under every strategy, and cut differently, is the same run: no loss changes, trained or held out.

For each method, transformers' Trainer with peft and bitsandbytes alone is the reference; every strategy that can train
the method is compared with it, over the product of the tables. Real processes over gloo, through the library's own
training code, on the tiny model in fp32.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ranks

from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.methods import METHODS
from thriftune.models.loading import attach_adapters
from thriftune.models.quantization import FourBit, configuration
from thriftune.models.tokenizer import load_tokenizer
from thriftune.strategies import STRATEGIES
from thriftune.training.held_out import held_out_loss

WORKER = Path(__file__).parent / "training_worker.py"
STEPS = 6
TOLERANCE = 1e-4
REFERENCE = "reference"


@dataclass(frozen=True)
class Variant:
    method: str
    strategy: str  # or REFERENCE: transformers' Trainer alone
    ranks: int = 1
    micro_batch: int = 8
    zero: str = ""
    training: dict = field(default_factory=dict)
    packed: bool = False


CHECKPOINTING = {"gradient_checkpointing": True}
VARIANTS = {
    "reference full": Variant("full", REFERENCE),
    "reference lora": Variant("lora", REFERENCE),
    "reference qlora": Variant("qlora", REFERENCE),
    "reference partial": Variant("partial", REFERENCE),
    "reference full, packed": Variant("full", REFERENCE, packed=True),
    "full zero3, 1 rank": Variant("full", "zero", zero="zero3"),
    "full zero3, 2 ranks": Variant("full", "zero", 2, 4, "zero3"),
    "full zero3, 2 ranks, accumulation 4": Variant("full", "zero", 2, 1, "zero3"),
    "full zero2, 2 ranks": Variant("full", "zero", 2, 4, "zero2"),
    "full zero1, 2 ranks": Variant("full", "zero", 2, 4, "zero1"),
    "full zero3, checkpointing": Variant("full", "zero", 2, 4, "zero3", CHECKPOINTING),
    "full zero3, 2 ranks, checkpointing, packed": Variant("full", "zero", 2, 4, "zero3", CHECKPOINTING, packed=True),
    "full single": Variant("full", "single"),
    "full single, accumulation 4": Variant("full", "single", micro_batch=2),
    "full fsdp, 2 ranks, accumulation 2": Variant("full", "fsdp", 2, 2),
    "full ddp, 2 ranks, accumulation 2": Variant("full", "ddp", 2, 2),
    "lora zero3, 2 ranks": Variant("lora", "zero", 2, 4, "zero3"),
    "lora fsdp, 2 ranks, checkpointing": Variant("lora", "fsdp", 2, 4, training=CHECKPOINTING),
    "lora ddp, 2 ranks, checkpointing": Variant("lora", "ddp", 2, 4, training=CHECKPOINTING),
    "qlora fsdp, 2 ranks": Variant("qlora", "fsdp", 2, 4),
    "qlora ddp, 2 ranks": Variant("qlora", "ddp", 2, 4),
    "partial fsdp, 2 ranks, checkpointing": Variant("partial", "fsdp", 2, 4, training=CHECKPOINTING),
    "partial ddp, 2 ranks": Variant("partial", "ddp", 2, 4),
    "partial single, checkpointing, accumulation 4": Variant("partial", "single", 1, 2, training=CHECKPOINTING),
    "partial zero3, 2 ranks": Variant("partial", "zero", 2, 4, "zero3"),
    "lora single": Variant("lora", "single"),
    "lora layers": Variant("lora", "layers", training=CHECKPOINTING),
    "qlora zero3, 2 ranks, checkpointing": Variant("qlora", "zero", 2, 4, "zero3", CHECKPOINTING),
    "qlora single": Variant("qlora", "single"),
    "qlora layers, accumulation 4": Variant("qlora", "layers", micro_batch=2),
    "prefix single": Variant("prefix", "single", training={"learning_rate": 0.1}),
    "prefix ddp, 2 ranks, checkpointing": Variant(
        "prefix", "ddp", 2, 4, training=CHECKPOINTING | {"learning_rate": 0.1}
    ),
    "llama_adapter single": Variant("llama_adapter", "single", training={"learning_rate": 0.3}),
    "llama_adapter ddp, 2 ranks": Variant("llama_adapter", "ddp", 2, 4, training={"learning_rate": 0.3}),
}
# Nats that six steps gain at least, on rows that are trained and held out; what is few learns less.
STARTS_OTHERWISE = {"prefix"}  # with random keys and values before every row
LEARNT = {"prefix": 0.01, "llama_adapter": 0.01}
LORA = {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
OF_METHOD = {
    "lora": LORA,
    "qlora": LORA,
    "partial": {"partial": {"train": [{"last_layers": 1}, "head"]}},
    "prefix": {"prefix": {"virtual_tokens": 8}},
    "llama_adapter": {"llama_adapter": {"tokens": 8}},
}
TRAINED = [name for name, variant in VARIANTS.items() if variant.strategy != REFERENCE]


def reference_of(name: str) -> str:
    """The Trainer with the same rows; for what it cannot train without our code, one process under no strategy."""
    variant = VARIANTS[name]
    reference = f"reference {variant.method}" + (", packed" if variant.packed else "")
    return reference if reference in VARIANTS else f"{variant.method} single"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """Every variant, run once: what it measured and its output directory. Those of one process share one."""
    folder = tmp_path_factory.mktemp("equivalence")
    # Rows of very different lengths: a mean of means would differ from the mean over tokens.
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=128)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    packed = data.model_copy(update={"packing": True})
    prepare.prepare(packed, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "packed")
    jobs = {
        name: {
            "config": config_of(variant),
            "model": str(tiny_model_dir),
            "dataset": str(folder / ("packed" if variant.packed else "dataset")),
            "output": str(folder / f"run{number}"),
            "reference": variant.strategy == REFERENCE,
        }
        for number, (name, variant) in enumerate(VARIANTS.items())
    }
    by_deepspeed = [name for name, variant in VARIANTS.items() if variant.strategy == "zero"]
    together = [name for name, variant in VARIANTS.items() if variant.ranks > 1 and name not in by_deepspeed]
    start([jobs[name] for name in together], folder / "together.json", 2)
    start([jobs[name] for name in jobs if name not in {*by_deepspeed, *together}], folder / "alone.json")
    for name in by_deepspeed:
        start([jobs[name]], Path(f"{jobs[name]['output']}.job"), VARIANTS[name].ranks)
    results = {name: json.loads(Path(f"{job['output']}.json").read_text()) for name, job in jobs.items()}
    return {"results": results, "jobs": jobs, "dataset": folder / "dataset"}


def config_of(variant: Variant) -> dict:
    training = {
        "global_batch": 8, "micro_batch": variant.micro_batch, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
        "learning_rate": 1e-2, "warmup_share": 0.1, "save_dtype": "fp32" if variant.method == "full" else "auto",
        "gradient_checkpointing": False, **variant.training,
    }  # fmt: skip
    return {
        "name": "equivalence",
        "method": variant.method,
        "strategy": "single" if variant.strategy == REFERENCE else variant.strategy,
        "model": {"source": "tiny"},
        "data": {"source": "rows", "format": "chat"},
        "hardware": {"device": "CPU", "devices_per_node": variant.ranks},
        "training": training,
        "evaluation": {"every_steps": 4, "max_new_tokens": 4, "prompts": ["What colour is the sky?"]},
        **({"zero": {"config": variant.zero}} if variant.zero else {}),
        **OF_METHOD.get(variant.method, {}),
    }


def start(jobs: list[dict], file: Path, count: int = 0) -> None:
    """Run jobs one after the other in a process, or in so many ranks; with DeepSpeed one only."""
    file.write_text(json.dumps(jobs))
    if count:
        ranks.run(count, WORKER, file)
        return
    command = [sys.executable, WORKER, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_pair_of_the_tables_is_compared_or_refused():
    compared = {(VARIANTS[name].method, VARIANTS[name].strategy) for name in TRAINED}
    refused = {(method, name) for name, strategy in STRATEGIES.items() for method in strategy.facts.refuses}
    assert compared | refused == {(method, strategy) for method in METHODS for strategy in STRATEGIES}
    assert not compared & refused


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_loss_curve_is_that_of_the_plain_trainer(runs, name):
    plain, other = (runs["results"][which]["losses"] for which in (reference_of(name), name))
    assert len(plain) == len(other) == STEPS
    differences = [b - a for a, b in zip(plain, other, strict=True)]
    assert max(map(abs, differences)) < TOLERANCE
    assert abs(sum(differences) / STEPS) < TOLERANCE / 2  # no drift to one side either
    learnt = LEARNT.get(VARIANTS[name].method, 0.1)
    assert plain[-1] < plain[0] - learnt, "the run must train, or the comparison says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if not VARIANTS[name].packed])
def test_a_validation_is_what_the_saved_model_has(runs, tiny_model_dir, name):
    """Measured where the model trains: sharded, split or in 4 bits. Loaded again alone, it is the same."""
    result, variant = runs["results"][name], VARIANTS[name]
    assert [validation["step"] for validation in result["validations"]] == [0, 4, 6]
    saved = Path(runs["jobs"][name]["output"])
    base = loss_of(tiny_model_dir, variant, None, runs["dataset"])
    assert result["validations"][0]["loss"] == result["before"]["loss"]
    if variant.method not in STARTS_OTHERWISE:
        assert result["before"]["loss"] == pytest.approx(base, abs=TOLERANCE)
    is_model = METHODS[variant.method].facts.trains_weights
    trained = loss_of(saved if is_model else tiny_model_dir, variant, saved, runs["dataset"])
    assert result["validations"][-1]["loss"] == result["after"]["loss"] == pytest.approx(trained, abs=TOLERANCE)
    plain = runs["results"][reference_of(name)]
    expected = plain["held_out_loss"] if "held_out_loss" in plain else plain["after"]["loss"]
    assert trained == pytest.approx(expected, abs=TOLERANCE)
    assert result["after"]["loss"] < result["before"]["loss"] - LEARNT.get(variant.method, 0.1)


def loss_of(model_dir: Path, variant: Variant, adapter: Path | None, dataset: Path) -> float:
    """The held-out loss of a model in a process of its own, as the separate evaluation measures it."""
    import torch
    from transformers import AutoModelForCausalLM

    quantized = configuration(torch.float32, FourBit()) if variant.method == "qlora" else None
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, quantization_config=quantized)
    if not METHODS[variant.method].facts.trains_weights and adapter is not None:
        model = attach_adapters(model, {"default": adapter})
    return held_out_loss(model.eval(), load_tokenizer(model_dir), load_split(dataset, VALIDATION), batch=4)[0]


@pytest.mark.slow
def test_only_files_of_an_ordinary_model_directory_are_saved(runs):
    saved = Path(runs["jobs"]["full zero3, 2 ranks"]["output"])
    names = {p.name for p in saved.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["deepspeed"]["zero_optimization"]["stage"] == 3
    assert manifest["training"]["steps"] == STEPS

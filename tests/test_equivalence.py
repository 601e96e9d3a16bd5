"""The same run cut differently is the same run: ranks, ZeRO stages, accumulation and checkpointing change no loss.

Real processes over gloo, through the library's own training code, on the tiny model in fp32.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import held_out_loss

WORKER = Path(__file__).parent / "training_worker.py"
STEPS = 6
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Variant:
    ranks: int
    micro_batch: int
    zero: str | dict | None  # None: transformers' Trainer without DeepSpeed
    training: dict = field(default_factory=dict)
    packed: bool = False


VARIANTS = {
    "plain": Variant(1, 8, None),
    "plain, accumulation 4": Variant(1, 2, None),
    "zero3, 1 rank": Variant(1, 8, "zero3"),
    "zero3, 2 ranks": Variant(2, 4, "zero3"),
    "zero3, 2 ranks, accumulation 4": Variant(2, 1, "zero3"),
    "zero2, 2 ranks": Variant(2, 4, "zero2"),
    "zero1, 2 ranks": Variant(2, 4, "zero1"),
    "zero3, checkpointing": Variant(2, 4, "zero3", {"gradient_checkpointing": True}),
    "packed plain": Variant(1, 8, None, packed=True),
    "packed zero3, 2 ranks, checkpointing": Variant(2, 4, "zero3", {"gradient_checkpointing": True}, packed=True),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """Every variant, run once: its losses and its output directory."""
    folder = tmp_path_factory.mktemp("equivalence")
    # Rows of very different lengths: a mean of means would differ from the mean over tokens.
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=128)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    packed = data.model_copy(update={"packing": True})
    prepare.prepare(packed, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "packed")
    dataset = folder / "dataset"
    results = {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        output = folder / f"run{number}"
        rows = folder / "packed" if variant.packed else dataset
        results[name] = (run(variant, tiny_model_dir, rows, output), output)
    return {"runs": results, "dataset": dataset}


def run(variant: Variant, model: Path, dataset: Path, output: Path) -> dict:
    training = {
        "global_batch": 8, "micro_batch": variant.micro_batch, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
        "learning_rate": 1e-2, "warmup_share": 0.1, "save_dtype": "fp32",
        "gradient_checkpointing": False, **variant.training,
    }  # fmt: skip
    config = {
        "name": "equivalence",
        "method": "full",
        "model": {"source": "tiny"},
        "data": {"source": "rows", "format": "chat"},
        "hardware": {"device": "CPU", "devices_per_node": variant.ranks},
        "training": training,
        "zero": {"config": variant.zero or "zero3"},
    }
    job = output.with_suffix(".job")
    content = {"model": str(model), "dataset": str(dataset), "output": str(output), "zero": bool(variant.zero)}
    job.write_text(json.dumps({"config": config, **content}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(variant.ranks), WORKER, job]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(f"{output}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("plain", "packed plain")])
def test_loss_curve_is_that_of_the_plain_trainer(runs, name):
    reference = "packed plain" if VARIANTS[name].packed else "plain"
    plain, other = runs["runs"][reference][0]["losses"], runs["runs"][name][0]["losses"]
    assert len(plain) == len(other) == STEPS
    differences = [b - a for a, b in zip(plain, other, strict=True)]
    assert max(map(abs, differences)) < TOLERANCE
    assert abs(sum(differences) / STEPS) < TOLERANCE / 2  # no drift to one side either
    assert plain[-1] < plain[0] - 0.1, "the run must train, or the comparison says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3, 2 ranks", "zero2, 2 ranks", "zero3, checkpointing"])
def test_saved_model_reloads_with_the_loss_it_had_in_memory(runs, name):
    from transformers import AutoModelForCausalLM

    in_memory = runs["runs"]["plain"][0]["held_out_loss"]
    saved = runs["runs"][name][1]
    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    assert str(model.dtype) == "torch.float32"
    rows = load_split(runs["dataset"], VALIDATION)
    loss, tokens = held_out_loss(model, load_tokenizer(saved), rows, batch=4)
    assert tokens > 0
    assert loss == pytest.approx(in_memory, abs=TOLERANCE)


@pytest.mark.slow
def test_only_files_of_an_ordinary_model_directory_are_saved(runs):
    saved = runs["runs"]["zero3, 2 ranks"][1]
    names = {p.name for p in saved.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["deepspeed"]["zero_optimization"]["stage"] == 3
    assert manifest["training"]["steps"] == STEPS

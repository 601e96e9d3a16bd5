"""Trainings of adapters in one process for the tests, and the losses of what they made by peft alone."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import has_avx512bf16
from conftest import run_dict
from peft import PeftModel
from planning import planned
from transformers import AutoModelForCausalLM

from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.models.quantization import FourBit, configuration
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.fit import Inputs, fit
from thriftune.training.held_out import held_out_loss, held_out_rows
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan

ROWS = 6
EXACT = 2e-6  # nats; what saving and loading may change in fp32
# The same of 4 bits. For CPUs with AVX-512 BF16, bitsandbytes 0.50 has a kernel in bf16 for what does not train, and a
# validation within a training and a model that is loaded again were seen to differ by 5e-4.
EXACT_IN_FOUR_BITS = 2e-3 if has_avx512bf16() else EXACT


def prepared(rows: Path, model: Path, folder: Path) -> Path:
    """The chat rows, as token rows."""
    data = DataConfig(source=str(rows), format="chat", max_length=64, validation_share=0.1)
    prepare.prepare(data, seed=0, tokenizer_dir=model, destination=folder / "dataset")
    return folder / "dataset"


def run_of(method: str, **sections: Any) -> RunConfig:
    """A short run in fp32 whose schedule does not depend on its length."""
    training = {
        "max_steps": 2, "learning_rate": 5e-3, "precision": "fp32", "log_every": 1, "scheduler": "constant",
        "warmup_share": 0, **sections.pop("training", {}),
    }  # fmt: skip
    evaluation = {"max_rows": ROWS, "prompts": ["What colour is a cat?"], "max_new_tokens": 2, "every_steps": 9}
    return RunConfig.model_validate(run_dict(method, training=training, evaluation=evaluation, **sections))


@cache
def _plan(method: str, model: Path) -> TrainingPlan:
    """The plan of a method, whose memory is not measured for each of its variants."""
    return planned(run_of(method), model=model)


def train(
    config: RunConfig,
    model: Path,
    dataset: Path,
    output: Path,
    store: Path | None = None,
    start: Path | None = None,
) -> TrainingResult:
    """Train in this process, with checkpoints if there is a store."""
    place = CheckpointLocation(str(store), store.with_name(f"{store.name}-scratch"), 10.0) if store else None
    return fit(Inputs(config, _plan(config.method, model), model, dataset, start, checkpoints=place), output)


def plain(model: Path, adapter: Path | None = None, *, four_bit: bool = False) -> Any:
    """The base model with an adapter, as transformers and peft load it."""
    quantized = configuration(torch.float32, FourBit()) if four_bit else None
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=quantized)
    return (PeftModel.from_pretrained(base, str(adapter)) if adapter else base).eval()


def loss(loaded: Any, model: Path, dataset: Path) -> float:
    """Held-out loss per token."""
    return held_out_loss(loaded, load_tokenizer(model), held_out_rows(dataset, ROWS), batch=4)[0]

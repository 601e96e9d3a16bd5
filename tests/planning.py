"""Plans for the tests: of the tiny model, for this machine or for the shipped catalogue."""

from pathlib import Path
from typing import Any

from thriftune import architecture, catalogue, offers, planner
from thriftune.config import ModelConfig, RunConfig
from thriftune.training_plan import TrainingPlan

TINY = architecture.from_content(
    {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 288,
    },
    "tiny",
)  # fmt: skip


def planned(config: RunConfig, deepspeed: dict[str, Any] | None = None, model: Path | None = None) -> TrainingPlan:
    """The plan of a run: for this machine if it asks for the CPU, else for the catalogue's nodes."""
    shape = architecture.of(ModelConfig(source=str(model))) if model else TINY
    named = config.zero_or_default.config
    files = {named: deepspeed} if deepspeed is not None and isinstance(named, str) else None
    hardware = config.hardware
    here = offers.this_machine() if hardware.device in (None, "CPU") and hardware.instance is None else None
    if files and named == "auto":
        files = {"only": deepspeed}
    return planner.plan(config, catalogue.load(), files, architecture=shape, here=here)

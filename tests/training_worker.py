"""One training run in the processes torchrun starts, for the tests: the library's own code, without Flyte.

Usage: torchrun --nproc_per_node N tests/training_worker.py JOB.json, where the job names a run configuration
(`config`), the directories `model`, `dataset` and `output`, and whether DeepSpeed is used (`zero`) or transformers'
Trainer alone. Writes `<output>.json` with what was measured.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from planning import planned

import deepspeed_configs
from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, VALIDATION, load_split
from thriftune.hardware import torch_dtype
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training import full
from thriftune.training import trainer as training
from thriftune.training.held_out import held_out_loss
from thriftune.training_plan import TrainingPlan


def plain_trainer(config: RunConfig, plan: TrainingPlan, job: dict) -> dict:
    """The same run with transformers' Trainer and nothing else, and the held-out loss of the model in memory."""
    from transformers import AutoModelForCausalLM

    scratch = Path(job["output"])
    rows = load_split(Path(job["dataset"]), TRAIN)
    held_out = load_split(Path(job["dataset"]), VALIDATION)
    tokenizer = load_tokenizer(Path(job["model"]))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch_dtype(plan.precision))

    trainer = training.make_trainer(model, training.training_arguments(config, plan, scratch), tokenizer, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss, _ = held_out_loss(trainer.model.eval(), tokenizer, held_out, batch=4)
    return {"losses": losses, "held_out_loss": loss}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    config = RunConfig.model_validate(job["config"])
    asked = config.zero_or_default.config
    deepspeed = asked if isinstance(asked, dict) else deepspeed_configs.load(asked)
    plan = planned(config, deepspeed, Path(job["model"]))
    if job["zero"]:
        result = asdict(full.train(config, plan, Path(job["model"]), Path(job["dataset"]), Path(job["output"])))
    else:
        result = plain_trainer(config, plan, job)
    if distributed.current_rank().is_main:
        Path(job["output"] + ".json").write_text(json.dumps(result))
    distributed.leave()


if __name__ == "__main__":
    main()

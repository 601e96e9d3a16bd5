"""Training runs in one process, or in those that torchrun starts, for the tests: the library's own code, without Flyte.

Usage: [torchrun --nproc_per_node N] tests/training_worker.py JOBS.json, a list of jobs that each name a run
configuration (`config`), the directories `model`, `dataset` and `output`, and whether transformers' Trainer does it
alone (`reference`). Writes `<output>.json` with what was measured. With DeepSpeed there can be one job: it is set up
once per process.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from planning import planned

from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, VALIDATION, load_split
from thriftune.hardware import torch_dtype
from thriftune.models.quantization import FourBit, configuration
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.fit import Inputs, fit
from thriftune.training.held_out import held_out_loss
from thriftune.training.trainer import make_trainer, training_arguments
from thriftune.training_plan import TrainingPlan


def plain_trainer(config: RunConfig, plan: TrainingPlan, job: dict) -> dict:
    """The same run with transformers' Trainer, peft and bitsandbytes alone, and the held-out loss of the model."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, set_seed

    rows, held_out = (load_split(Path(job["dataset"]), split) for split in (TRAIN, VALIDATION))
    tokenizer, dtype = load_tokenizer(Path(job["model"])), torch_dtype(plan.precision)
    quantized = configuration(dtype, FourBit()) if config.method == "qlora" else None
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, quantization_config=quantized)
    if config.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if config.method == "partial":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(("model.layers.1.", "lm_head."))
    if config.lora is not None:
        lora = config.lora_or_default
        set_seed(config.seed)
        model = get_peft_model(
            model,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    trainer = make_trainer(model, training_arguments(config, plan, Path(job["output"]), {}), tokenizer, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss, _ = held_out_loss(trainer.model.eval(), tokenizer, held_out, batch=4)
    return {"losses": losses, "held_out_loss": loss}


def run(job: dict) -> None:
    """One job."""
    config = RunConfig.model_validate(job["config"])
    plan = planned(config, model=Path(job["model"]))
    if job.get("reference"):
        result = plain_trainer(config, plan, job)
    else:
        inputs = Inputs(config, plan, Path(job["model"]), Path(job["dataset"]))
        result = asdict(fit(inputs, Path(job["output"])))
    if distributed.current_rank().is_main:
        Path(job["output"] + ".json").write_text(json.dumps(result))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
    distributed.leave()


if __name__ == "__main__":
    main()

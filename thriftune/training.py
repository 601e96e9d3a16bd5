"""What both methods share: arguments for transformers' Trainer, the training itself, and what is measured of it."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed
from thriftune.collation import PackedCollator, PaddingCollator
from thriftune.config import RunConfig
from thriftune.data.prepared import is_packed
from thriftune.errors import DivergedError
from thriftune.memory.overhead import START_GIB
from thriftune.memory_watch import MemoryUse, PeakMemory, return_freed_blocks, warn_if_far_off
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
# Tensor cores want multiples of 8; padding to them costs at most 7 tokens a row.
_PAD_MULTIPLE = 8


@dataclass(frozen=True)
class TrainingResult:
    """What a training did, over all its ranks.

    Attributes:
        steps: Optimizer steps done.
        seconds: Wall-clock time of the training loop.
        tokens_per_second: Tokens trained through, without padding, over all ranks.
        loss_steps: Steps at which the loss was logged.
        losses: Training loss at those steps, averaged over the steps since the one before.
        memory: Peak from loading to the last step, beside what the plan predicted.
    """

    steps: int
    seconds: float
    tokens_per_second: float
    loss_steps: list[int]
    losses: list[float]
    memory: MemoryUse


def training_arguments(
    config: RunConfig, plan: TrainingPlan, scratch: Path, deepspeed: dict[str, Any] | None = None
) -> "TrainingArguments":
    """Arguments for the Trainer, from the run and its plan.

    Args:
        config: The run.
        plan: Its plan.
        scratch: Folder the Trainer may write to.
        deepspeed: The complete DeepSpeed configuration, or None.

    Returns:
        The arguments. With a DeepSpeed configuration, every later `from_pretrained` in this process is wrapped in
        `zero.Init` by transformers.
    """
    from transformers import TrainingArguments

    training = config.training
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=training.warmup_share,  # a number below 1 is a share of all steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=_OPTIMIZERS[training.optimizer],
        fp16=plan.precision == "fp16",
        bf16=plan.precision == "bf16",
        use_cpu=not plan.hardware.is_gpu,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        deepspeed=deepspeed,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=training.log_every,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=training.report_to,
        run_name=config.name,
        disable_tqdm=True,
    )


def make_trainer(
    model: Any,
    arguments: "TrainingArguments",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
) -> "Trainer":
    """A Trainer over prepared rows, packed or not, with padding at the end of each row that carries no loss."""
    from transformers import PrinterCallback, Trainer

    from thriftune.callbacks import ProgressLines

    collator = PackedCollator if is_packed(rows) else PaddingCollator
    model.config.use_cache = False  # besides being of no use, it lets packed examples see each other
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator(tokenizer, _PAD_MULTIPLE),
        processing_class=tokenizer,  # it counts the tokens that are not padding by their id where there is no mask
        callbacks=[ProgressLines()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def measured_training(load: Callable[[], "Trainer"], plan: TrainingPlan) -> tuple["Trainer", TrainingResult]:
    """Load and train, measuring from the first byte loaded to the last step. Collective: every rank calls it.

    Args:
        load: Makes the trainer, model and all.
        plan: The plan of the run, with the memory it predicts.

    Returns:
        The trainer after training, and what was measured, the same on every rank.
    """
    return_freed_blocks()
    with PeakMemory() as peak:
        trainer = load()
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    _require_finite(logged, trainer.args.learning_rate)
    return trainer, TrainingResult(
        steps=trainer.state.global_step,
        seconds=seconds,
        tokens_per_second=trainer.state.num_input_tokens_seen / seconds,
        loss_steps=[int(entry["step"]) for entry in logged],
        losses=[float(entry["loss"]) for entry in logged],
        memory=_memory_use(peak, plan),
    )


def _memory_use(peak: PeakMemory, plan: TrainingPlan) -> MemoryUse:
    """The peaks of all ranks beside the prediction. Collective: every rank calls it."""
    processes = distributed.gather_to_all(peak.process_gib)
    per_node = plan.processes_per_node
    # What a process held before: nothing to speak of in a worker of its own, a whole pipeline in a local QLoRA run.
    held = max(0.0, max(distributed.gather_to_all(peak.start_gib)) - START_GIB)
    predicted = plan.memory.training_host_gib
    use = MemoryUse(
        device=max(distributed.gather_to_all(peak.device_gib)) if plan.hardware.is_gpu else max(processes),
        predicted_device=plan.memory.allocated_gib + (0.0 if plan.hardware.is_gpu else held),
        host=max(sum(processes[first : first + per_node]) for first in range(0, len(processes), per_node)),
        predicted_host=predicted + (0.0 if plan.hardware.is_gpu else held * per_node),
    )
    if distributed.current_rank().is_main:
        warn_if_far_off(use)
    return use


def _require_finite(logged: list[dict[str, Any]], learning_rate: float) -> None:
    """Refuse to go on to saving a model whose loss became infinite or not a number.

    Raises:
        DivergedError: Names the first step at which that was logged.
    """
    bad = next((entry for entry in logged if not math.isfinite(entry["loss"])), None)
    if bad is not None:
        raise DivergedError.single(
            "training.learning_rate",
            learning_rate,
            f"the loss is {bad['loss']} at step {bad['step']}.",
            "Lower the learning rate or raise warmup_share; on a GPU without bfloat16, look for overflow in fp16.",
        )


def run_record(
    config: RunConfig, plan: TrainingPlan, model_dir: Path, dataset_dir: Path, result: TrainingResult
) -> dict[str, Any]:
    """What the manifest of a trained directory says of the run that made it."""
    return {
        "config": config.model_dump(mode="json"),
        "plan": asdict(plan),
        "model_version": artifacts.source_version(model_dir),
        "dataset_fingerprint": artifacts.read_manifest(dataset_dir)["fingerprint"],
        "training": asdict(result),
    }

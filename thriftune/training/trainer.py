"""transformers' Trainer for a run: its arguments, and the Trainer itself."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.batching import PAD_MULTIPLE
from thriftune.config import RunConfig
from thriftune.data.prepared import is_packed
from thriftune.strategies import StateFiles
from thriftune.training.collation import PackedCollator, PaddingCollator
from thriftune.training.objective import LANGUAGE, Objective
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from thriftune.training.resumable import ResumableTrainer
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(
    config: RunConfig, plan: TrainingPlan, scratch: Path, of_strategy: dict[str, Any]
) -> "TrainingArguments":
    """Make the Trainer's arguments from the run and its plan.

    Args:
        config: The run.
        plan: Its plan.
        scratch: Folder that the Trainer may write to.
        of_strategy: Arguments from the strategy.

    Returns:
        The arguments.
    """
    from transformers import TrainingArguments

    training = config.training
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=plan.validation_batch,
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
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=training.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not a number must be visible
        include_num_input_tokens_seen="non_padding",
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=training.report_to,
        run_name=config.name,
        disable_tqdm=True,
        **of_strategy,
    )


def make_trainer(
    model: Any,
    arguments: "TrainingArguments",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    skipped_steps: Collection[int] = (),
    state_files: StateFiles | None = None,
    objective: Objective = LANGUAGE,
) -> "ResumableTrainer":
    """Make a Trainer for prepared rows, packed or not. Padding is at the end of each row, and has no loss.

    Args:
        model: The model.
        arguments: The Trainer's arguments.
        tokenizer: The model's tokenizer.
        rows: Rows to train on.
        skipped_steps: Optimizer steps whose batch is skipped.
        state_files: Writes and reads what trains in a checkpoint; None if the Trainer does.
        objective: What the model learns from rows.
    """
    from transformers import PrinterCallback

    from thriftune.training.callbacks import ProgressLines
    from thriftune.training.resumable import ResumableTrainer

    collator = PackedCollator if is_packed(rows) else PaddingCollator
    model.config.use_cache = False  # a cache is not needed, and with one packed examples would see each other
    trainer = ResumableTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator(tokenizer, PAD_MULTIPLE),
        processing_class=tokenizer,  # without a mask the Trainer needs the pad id to count tokens
        callbacks=[ProgressLines()],
        skipped_steps=skipped_steps,
        state_files=state_files,
        objective=objective,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def seed_by_rank(seed: int) -> None:
    """Let every rank draw other random numbers from now on (dropout); rank 0 draws those of a single process.

    A checkpoint holds the state of each rank. Before this the numbers are the same on all, as are new weights.

    Args:
        seed: The run's.
    """
    from transformers import set_seed

    if not distributed.current_rank().is_main:
        set_seed(seed + distributed.current_rank().index)

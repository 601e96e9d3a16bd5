"""What both methods share: arguments for transformers' Trainer, the training itself, and what is measured of it."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.batching import PAD_MULTIPLE
from thriftune.config import RunConfig
from thriftune.data.prepared import is_packed
from thriftune.errors import DivergedError
from thriftune.models.saving import SavedWeights
from thriftune.overhead import START_GIB
from thriftune.training.collation import PackedCollator, PaddingCollator
from thriftune.training.guards.oom import Halvings
from thriftune.training.guards.resources import FillWarning, ResourceWatch, Samples
from thriftune.training.memory_watch import MemoryUse, PeakMemory, warn_if_far_off
from thriftune.training.report import Event
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from thriftune.training.resumable import ResumableTrainer
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Effort:
    """What the steps of a training took, those of earlier attempts included.

    Attributes:
        seconds: Wall-clock time of the training loop, without steps that were lost and done again.
        tokens: Trained through in that time, without padding, over all ranks.
    """

    seconds: float = 0.0
    tokens: float = 0.0

    def with_attempt(self, trainer: "Trainer", seconds: float) -> "Effort":
        """With what an attempt adds.

        Args:
            trainer: That of the attempt.
            seconds: Since its beginning.
        """
        from thriftune.training.callbacks import ProgressLines

        (progress,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressLines))
        tokens = float(trainer.state.num_input_tokens_seen) - progress.tokens_before
        return Effort(self.seconds + seconds, self.tokens + tokens)


@dataclass(frozen=True)
class TrainingResult:
    """What a training did, over all its ranks.

    Attributes:
        steps: Optimizer steps done.
        seconds: Wall-clock time of the training loop, over all attempts, without steps that were done again.
        tokens_per_second: Tokens trained through in that time, without padding, over all ranks.
        loss_steps: Steps at which the loss was logged.
        losses: Training loss at those steps, averaged over the steps since the one before.
        memory: Peak from loading to the last step, in the last attempt, beside what the plan predicted.
        resumed_at: Step of the checkpoint that the last attempt went on from; 0 if it began at the beginning.
        halvings: How often memory ran out, and what the micro batch is since.
        skipped_steps: Steps whose batch was left out, because the loss diverged there.
        resources: Memory and disk over the last attempt, on the node of rank 0.
        warnings: What was nearly full there.
        remarks: What of the run whose checkpoint it went on from is another than in its own, and which value holds.
        saved: How the weights are saved, and what rounding does to them; None where nothing is rounded: adapters, and
            weights in fp32 that the run asks for.
    """

    steps: int
    seconds: float
    tokens_per_second: float
    loss_steps: list[int]
    losses: list[float]
    memory: MemoryUse
    resumed_at: int
    halvings: Halvings
    skipped_steps: list[int]
    resources: Samples
    warnings: list[FillWarning]
    remarks: list[str] = field(default_factory=list)
    saved: SavedWeights | None = None

    @property
    def events(self) -> list[Event]:
        """What happened to it, for its page."""
        at, size = self.resumed_at, self.halvings
        went_on = " ".join([f"Went on from the checkpoint of step {at}.", *self.remarks])
        happened = [Event(at, 0.0, "resumed", went_on)] if at else []
        if size.count:
            text = f"Memory ran out: micro batch {size.after} in place of {size.before}."
            happened.append(Event(at, 0.0, "halved", text))
        left_out = "The loss diverged: the batch of step {} was left out."
        happened += [Event(step, 0.0, "rolled back", left_out.format(step)) for step in self.skipped_steps]
        return [*happened, *(Event(0, warning.seconds, "warning", warning.text) for warning in self.warnings)]


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
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
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
    skipped_steps: Collection[int] = (),
) -> "ResumableTrainer":
    """A Trainer over prepared rows, packed or not, with padding at the end of each row that carries no loss.

    Args:
        model: The model.
        arguments: The Trainer's.
        tokenizer: Its tokenizer.
        rows: What to train on.
        skipped_steps: Optimizer steps whose batch is left out.
    """
    from transformers import PrinterCallback

    from thriftune.training.callbacks import ProgressLines
    from thriftune.training.resumable import ResumableTrainer

    collator = PackedCollator if is_packed(rows) else PaddingCollator
    model.config.use_cache = False  # besides being of no use, it lets packed examples see each other
    trainer = ResumableTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator(tokenizer, PAD_MULTIPLE),
        processing_class=tokenizer,  # it counts the tokens that are not padding by their id where there is no mask
        callbacks=[ProgressLines()],
        skipped_steps=skipped_steps,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def result_of(
    trainer: "Trainer",
    plan: TrainingPlan,
    peak: PeakMemory,
    effort: Effort,
    *,
    resumed_at: int,
    halvings: Halvings,
    skipped_steps: list[int],
    remarks: list[str],
    resources: ResourceWatch,
) -> TrainingResult:
    """What a training did. Collective: every rank calls it.

    Args:
        trainer: After training.
        plan: The plan of the run, with the memory it predicts.
        peak: The memory of this process.
        effort: What training took.
        resumed_at: Step that it went on from.
        halvings: How often memory ran out.
        skipped_steps: Steps whose batch was left out.
        remarks: What of the run that it went on from is another than in its own.
        resources: Watched what was used meanwhile.

    Raises:
        DivergedError: The loss became infinite or not a number.
    """
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    _require_finite(logged, trainer.args.learning_rate)
    return TrainingResult(
        steps=trainer.state.global_step,
        seconds=effort.seconds,
        tokens_per_second=effort.tokens / effort.seconds if effort.seconds else 0.0,
        loss_steps=[int(entry["step"]) for entry in logged],
        losses=[float(entry["loss"]) for entry in logged],
        memory=_memory_use(peak, plan, has_trained=trainer.state.global_step > resumed_at),
        resumed_at=resumed_at,
        halvings=halvings,
        skipped_steps=skipped_steps,
        resources=resources.samples(),
        warnings=list(resources.warnings),
        remarks=remarks,
    )


def _memory_use(peak: PeakMemory, plan: TrainingPlan, *, has_trained: bool) -> MemoryUse:
    """The peaks of all ranks beside the prediction, which is of training. Collective: every rank calls it."""
    processes = distributed.gather_objects(peak.process_gib)
    per_node = plan.processes_per_node
    # What a process held before: nothing to speak of in a worker of its own, a whole pipeline in a local QLoRA run.
    held = max(0.0, max(distributed.gather_objects(peak.start_gib)) - START_GIB)
    predicted = plan.memory.training_host_gib
    use = MemoryUse(
        device=max(distributed.gather_objects(peak.device_gib)) if plan.hardware.is_gpu else max(processes),
        predicted_device=plan.memory.allocated_gib + (0.0 if plan.hardware.is_gpu else held),
        host=max(sum(processes[first : first + per_node]) for first in range(0, len(processes), per_node)),
        predicted_host=predicted + (0.0 if plan.hardware.is_gpu else held * per_node),
    )
    if has_trained and distributed.current_rank().is_main:
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

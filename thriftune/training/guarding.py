"""The callback that checks a training after each step: whether it diverged, and that it still makes progress."""

import logging
import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.checkpoints.resumption import Checkpoints
from thriftune.errors import DivergedError, StartAgainError
from thriftune.training.adjustments import Adjustments
from thriftune.training.guards.divergence import Divergence, DivergenceGuard
from thriftune.training.guards.stall import StallWatch

if TYPE_CHECKING:
    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 80


class Guarding(TrainerCallback):
    """Stops a training whose loss diverged, or rolls it back; and tells the stall watch about its progress.

    Args:
        trainer: The trainer, which keeps the losses of a step.
        guard: Detects divergence from the recent losses.
        stall: Ends the process when no step is done for too long.
        on_divergence: What to do when the loss diverges: `stop` or `rollback`.
        adjustments: What the training changed about itself so far.
        checkpoints: Where a change is recorded; None if none are saved, so that nothing can be rolled back.
    """

    def __init__(
        self,
        trainer: "ResumableTrainer",
        guard: DivergenceGuard,
        stall: StallWatch,
        on_divergence: str,
        adjustments: Adjustments,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._trainer, self._guard, self._stall = trainer, guard, stall
        self._on_divergence, self._adjustments, self._checkpoints = on_divergence, adjustments, checkpoints

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave it to the guard to judge a loss scale at its floor.

        Else DeepSpeed (0.19.8) raises a plain `Exception` at the first overflow there, before the guard sees anything.
        """
        scaler: Any = getattr(_optimizer_of_deepspeed(self._trainer), "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that a pass of an accumulated step was done."""
        self._stall.beat()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the loss of the step.

        If it diverged, this raises DivergedError where the run stops, and StartAgainError where it rolls back.
        """
        self._stall.beat()
        losses = self._trainer.pop_losses()
        self._trainer.step_loss = math.nan
        if state.global_step in self._trainer.skipped_steps:
            return
        own = sum(losses)
        mean = self._trainer.step_loss = distributed.mean(own)
        if not math.isfinite(own):
            self._name_batch(state.global_step, losses)
        divergence = self._guard.observe(state.global_step, mean, loss_scale(self._trainer))
        if divergence is not None:
            self._act(divergence)

    def _act(self, divergence: Divergence) -> None:
        why = divergence.message
        if self._on_divergence == "rollback" and self._checkpoints is not None:
            changed = self._adjustments.after_divergence(divergence.since, why)
            left_out = changed.skipped_steps[-1]
            with self._stall.paused():  # this waits for uploads
                # A checkpoint saved right before may hold what made the loss diverge. It is dropped before the change
                # is recorded: a run that is killed in between resumes from an older one, and gets here again.
                self._checkpoints.drop_from(left_out - 1)
            self._checkpoints.adjust(changed.as_json())
            raise StartAgainError(f"{why} Going back, and skipping the batch of step {left_out}.")
        raise DivergedError.single(
            "training.learning_rate",
            self._trainer.args.learning_rate,
            f"{why} The last checkpoint before it is kept.",
            "Lower the learning rate or raise warmup_share; look for overflow in fp16; or set training.on_divergence: "
            "rollback, which skips the batch.",
        )

    def _name_batch(self, step: int, losses: list[float]) -> None:
        """Log the rows of the passes whose loss is not finite, on every rank that has some."""
        for number, (loss, rows) in enumerate(zip(losses, self._trainer.last_rows, strict=False)):
            if not math.isfinite(loss):
                tokenizer: Any = self._trainer.processing_class
                text = tokenizer.decode(rows, skip_special_tokens=True)[:_SHOWN_CHARACTERS]
                rank = distributed.current_rank().index
                logger.error("Rank %d: the loss is %s in pass %d of step %d: %r ...", rank, loss, number, step, text)


def loss_scale(trainer: "ResumableTrainer") -> float | None:
    """The present loss scale of fp16; None where there is none or it is fixed.

    Args:
        trainer: The trainer.
    """
    optimizer = _optimizer_of_deepspeed(trainer)
    if trainer.args.fp16 and getattr(optimizer, "dynamic_loss_scale", False):
        return float(optimizer.loss_scale)
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else None


def _optimizer_of_deepspeed(trainer: "ResumableTrainer") -> Any:
    return getattr(getattr(trainer, "deepspeed", None), "optimizer", None)

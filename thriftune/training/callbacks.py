"""Callbacks of the Trainer that log progress and validate, readable in a terminal and in a pod's log."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.training.result import Pace
from thriftune.training.validation import Validator

logger = logging.getLogger(__name__)


class ProgressLines(TrainerCallback):
    """Logs step, loss, learning rate, speed and remaining time, instead of a progress bar, which fills a pod's log."""

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where the training begins."""
        self._started, self._first_step = 0.0, state.global_step
        if state.is_world_process_zero:
            logger.info("Training %d steps of %d rows", state.max_steps, args.train_batch_size * args.world_size
                        * args.gradient_accumulation_steps)  # fmt: skip

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock at the first step: what was measured before it says nothing of the time that is left."""
        self._started = self._started or time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log one line."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        elapsed = time.monotonic() - self._started
        done = state.global_step - self._first_step
        remaining = elapsed / max(done, 1) * (state.max_steps - state.global_step)
        logger.info(
            "step %d/%d  loss %.4f  lr %.2e  grad norm %.2f  %.2f s/step  %s left",
            state.global_step,
            state.max_steps,
            float(logs["loss"]),
            float(logs.get("learning_rate", math.nan)),
            float(logs.get("grad_norm", math.nan)),
            elapsed / max(done, 1),
            f"{remaining // 60:.0f} min {remaining % 60:.0f} s",
        )


class StepClock(TrainerCallback):
    """Times loading, and each step from its first pass to the end of its update, without what is done between steps.

    Make it when loading begins. Its place is behind the callback that reads the losses of a step, which waits for the
    GPU, and before those that validate and save.
    """

    def __init__(self) -> None:
        self._began = self._loaded = self._step_began = time.monotonic()
        self._seconds: list[float] = []
        self._tokens: list[float] = []
        self._busy = 0.0

    @property
    def pace(self) -> Pace:
        """What was measured so far."""
        seconds, tokens = math.fsum(self._seconds[1:]), math.fsum(self._tokens[1:])
        steps = len(self._seconds[1:])
        per_step, per_second = (seconds / steps, tokens / seconds) if seconds else (0.0, 0.0)
        return Pace(steps, per_step, per_second, self._loaded - self._began)

    @property
    def busy_seconds(self) -> float:
        """Seconds of all steps so far, also of the first."""
        return self._busy

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that everything is loaded."""
        self._loaded = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note when a step begins, and the tokens until then."""
        self._step_began = time.monotonic()
        self._tokens.append(-float(state.num_input_tokens_seen))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note when it ends, and its tokens."""
        self._seconds.append(time.monotonic() - self._step_began)
        self._busy += self._seconds[-1]
        self._tokens[-1] += float(state.num_input_tokens_seen)


class EndAfterUpdates(TrainerCallback):
    """Ends a training after some steps that changed weights.

    In fp16 the first steps may change nothing, until the loss scale is small enough; nor does the optimizer have its
    states before.

    Args:
        skipped: Whether the step that was just done changed nothing.
        wanted: Number of steps.

    Attributes:
        done: Steps so far that changed weights.
    """

    done: int

    def __init__(self, skipped: Callable[[], bool], wanted: int) -> None:
        self._skipped, self._wanted = skipped, wanted
        self.done = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step, and end the training if there were enough."""
        self.done += not self._skipped()
        if self.done >= self._wanted:
            control.should_training_stop = True


class ValidationCallback(TrainerCallback):
    """Measures the held-out loss before the first step, when it is due, and after the last step.

    Args:
        validator: Measures it.
        begin: Measures before the first step; not called when a training resumes.
        patience: Validations in a row without a lower loss after which training ends; None for no limit.

    Attributes:
        validator: Measures it.
        improved_at: Last step whose weights had the lowest loss of all steps so far; 0 before there is one.
    """

    validator: Validator
    improved_at: int

    def __init__(self, validator: Validator, begin: Callable[[], None], patience: int | None) -> None:
        self.validator, self._begin, self._patience = validator, begin, patience
        self.improved_at = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the base model; a training that resumes after running out of patience ends again."""
        if state.global_step == 0:
            self._begin()
            self._log(state)
        self._stop_if_in_vain(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is due."""
        if not self.validator.is_due(state):
            return
        self.validator.losses()
        if self.validator.ranked()[0].step == state.global_step:
            self.improved_at = state.global_step
        self._log(state)
        self._stop_if_in_vain(control)

    def _log(self, state: TrainerState) -> None:
        """Log the validation of the present step in one line."""
        losses = self.validator.measured(state.global_step)
        if losses is None or not state.is_world_process_zero:
            return
        step, lowest = state.global_step, self.validator.lowest().step
        so_far = (
            "before training" if not step else "the lowest so far" if lowest == step else f"lowest at step {lowest}"
        )
        general = "" if losses.general_loss is None else f"  general loss {losses.general_loss:.4f}"
        logger.info(
            "step %d/%d  held-out loss %.4f  %s%s  (%s)",
            step, state.max_steps, losses.mean, losses.quality, general, so_far,
        )  # fmt: skip

    def _stop_if_in_vain(self, control: TrainerControl) -> None:
        waited = self.validator.without_improvement()
        if self._patience is not None and waited >= self._patience:
            if distributed.current_rank().is_main:
                logger.info("%d validations did not lower the held-out loss (training.patience): ending", waited)
            control.should_training_stop = True

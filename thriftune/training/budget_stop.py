"""Stops a training after a checkpoint when going on might cost more than it may."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.checkpoints.resumption import Checkpoints
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.stall import StallWatch
from thriftune.training.spending import Spending


class BudgetCallback(TrainerCallback):
    """Notes the time of an attempt, and stops it after a checkpoint when another step might exceed the budget.

    Its place is behind the callback that saves checkpoints.

    Args:
        spending: What the training has cost.
        checkpoints: Where checkpoints go.
        guard: Knows whether the loss is suspicious, so that nothing should be saved.
        stall: The stall watch, which must not count the time that an upload takes.
    """

    def __init__(self, spending: Spending, checkpoints: Checkpoints, guard: DivergenceGuard, stall: StallWatch) -> None:
        self._spending, self._checkpoints, self._guard, self._stall = spending, checkpoints, guard, stall
        self._is_main = distributed.current_rank().is_main
        self._ended = self._step_seconds = self._longest = self._saving = 0.0
        self._is_over = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from here; what loading and the first validation took is noted."""
        self._ended = time.monotonic()
        self._spending.note(at_once=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, if the next step and its checkpoint may be too much. The slowest step so far is taken for the next one.

        Never after the last step: what is left then is to write the result, which the whole training was for.
        """
        now = time.monotonic()
        self._step_seconds, self._ended = now - self._ended, now
        self._longest = max(self._longest, self._step_seconds)
        self._spending.note()
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if is_last or not self._spending.is_limited:
            return
        next_seconds = self._longest + 2 * self._saving
        (self._is_over,) = distributed.any_rank(self._is_main and self._spending.would_exceed(next_seconds))
        if self._is_over:
            keeps_another = self._checkpoints.config.keep_checkpoints > 1
            control.should_save = control.should_save or not self._guard.is_suspicious or keeps_another
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note how long saving took."""
        self._saving = max(self._saving, time.monotonic() - self._ended)
        self._ended = time.monotonic()
        self._spending.note(at_once=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that all steps are done. If the budget ended them, wait for the last upload, and raise BudgetError.

        The last checkpoint may have failed, or been left out. What the store has is what counts.
        """
        if not self._is_over:
            self._spending.end(state.global_step)
            return
        with self._stall.paused():
            self._checkpoints.wait()
            self._spending.note(at_once=True)
            distributed.barrier()
            saved = self._spending.saved_step()
        raise self._spending.error(saved, state.max_steps, self._step_seconds)

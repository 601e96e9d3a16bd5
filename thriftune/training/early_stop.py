"""Stops a training after a checkpoint when whoever compares it with others says so."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.checkpoints.resumption import Checkpoints
from thriftune.errors import StoppedEarlyError, TransientError
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.stall import StallWatch
from thriftune.training.result import GoesOn, logged_validations


class EarlyStop(TrainerCallback):
    """Tells of each validation, and stops the training where the answer is that it does not go on.

    Its place is behind the callbacks that validate and that save checkpoints.

    Args:
        goes_on: What is told, on rank 0, and answers; None where nobody compares.
        checkpoints: Where checkpoints go.
        guard: Knows whether the loss is suspicious, so that nothing should be saved.
        stall: The stall watch, which must not count the time that an answer takes.
    """

    def __init__(
        self, goes_on: GoesOn | None, checkpoints: Checkpoints, guard: DivergenceGuard, stall: StallWatch
    ) -> None:
        self._goes_on, self._checkpoints, self._guard, self._stall = goes_on, checkpoints, guard, stall
        self._is_stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask again about a training that goes on from a checkpoint with validations: the answer may have been lost."""
        if state.global_step and state.global_step < state.max_steps:
            self._ask(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask after a validation. After the last step the answer changes nothing: the result is made."""
        found = logged_validations(state)
        if found and found[-1].step == state.global_step:
            self._ask(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """If the answer ended the training, wait for the last upload, and raise StoppedEarlyError.

        It raises TransientError if no checkpoint could be saved: another attempt saves one.
        """
        if not self._is_stopped:
            return
        with self._stall.paused():
            self._checkpoints.wait()
            distributed.barrier()
            saved = distributed.from_main(self._checkpoints.spent.newest_step)
        if not saved:
            raise TransientError(f"The training was stopped early at step {state.global_step}, and no checkpoint saved")
        message = f"others were better after as many validations; its newest checkpoint is that of step {saved}."
        remedy = "Start the same sweep without sweep.halving to go on from there."
        raise StoppedEarlyError.single("sweep.halving", f"step {state.global_step}", message, remedy)

    def _ask(self, state: TrainerState, control: TrainerControl) -> None:
        after = [validation for validation in logged_validations(state) if validation.step > 0]
        goes_on = self._goes_on
        if goes_on is None or not after:
            return
        with self._stall.paused():
            (is_over,) = distributed.any_rank(distributed.current_rank().is_main and not goes_on(after))
        if not is_over or control.should_training_stop or state.global_step >= state.max_steps:
            return
        self._is_stopped = True
        is_new = after[-1].step == state.global_step
        may_save = not self._guard.is_suspicious or self._checkpoints.config.keep_checkpoints > 1
        control.should_save = control.should_save or (is_new and may_save)
        control.should_training_stop = True

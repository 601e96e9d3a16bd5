"""What the Trainer tells while it works: one line per few steps, readable in a terminal and in a pod's log."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class ProgressLines(TrainerCallback):
    """Log step, loss, learning rate, speed and remaining time; in place of a progress bar, which fills a pod's log."""

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0
        self.tokens_before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started, self._first_step = time.monotonic(), state.global_step
        self.tokens_before = float(state.num_input_tokens_seen)
        if state.is_world_process_zero:
            logger.info("Training %d steps of %d rows", state.max_steps, args.train_batch_size * args.world_size
                        * args.gradient_accumulation_steps)  # fmt: skip

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


class BeforeFirstStep(TrainerCallback):
    """Does something before the first step of a training, and not where one goes on.

    Args:
        action: What to do; every rank does it.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do it."""
        if state.global_step == 0:
            self._action()

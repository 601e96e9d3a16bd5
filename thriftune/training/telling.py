"""The callback that writes a training's lines while it goes on."""

import math
import time
from typing import TYPE_CHECKING, Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.overhead import START_GIB
from thriftune.training.guarding import loss_scale
from thriftune.training.held_out import ACCURACY, GENERAL_LOSS, MACRO_F1
from thriftune.training.lines import Journal
from thriftune.training.result import HELD_OUT_LOSS
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from thriftune.training.callbacks import StepClock
    from thriftune.training.resumable import ResumableTrainer

_GIB = 2**30
# So many lines of steps are written one for each step. After that one stands for all steps of half a second, or of a
# 2000th of the time so far: a run of weeks leaves some MB.
_EACH_STEP, _LEAST_SECONDS, _SHARE = 500, 0.5, 1 / 2000
# Seconds between two lines of a rank that says only how much memory it has.
_MEMORY_SECONDS = 10.0


class Telling(TrainerCallback):
    """Writes a line for each step, validation and checkpoint.

    Make it when loading begins. Its place is behind the callbacks that read the losses of a step and time it.

    Args:
        journal: Where to.
        clock: Times steps.
        plan: The plan, with the memory that it expects.
    """

    _trainer: "ResumableTrainer"

    def __init__(self, journal: Journal, clock: "StepClock", plan: TrainingPlan) -> None:
        self._journal, self._clock, self._plan = journal, clock, plan
        self._is_main = distributed.current_rank().is_main
        self._began = self._said = time.monotonic()
        self._count = 0
        self._losses: list[float] = []
        self._rate: float | None = None
        self._resident_gib = self._held_gib = _resident_gib()

    def watching(self, trainer: "ResumableTrainer") -> Self:
        """The same, for a trainer.

        Args:
            trainer: The trainer, with the model.
        """
        self._trainer = trainer
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that everything is loaded, and what is planned."""
        held = 0.0 if self._plan.hardware.is_gpu else max(0.0, self._held_gib - START_GIB)
        planned = self._plan.memory.allocated_gib + held
        text = f"Resumed from the checkpoint of step {state.global_step}." if state.global_step else ""
        self._journal.write(
            "training", state.global_step, text, steps=state.max_steps, planned_gib=planned, **self._memory()
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate: at the end of the step there is that of the next one."""
        if self._is_main:
            self._rate = self._trainer.learning_rate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what a step did, or the steps since the line before."""
        step, trainer = state.global_step, self._trainer
        if self._is_main and step in trainer.skipped_steps:
            self._journal.write("skipped", step, f"The loss had diverged: the batch of step {step} was skipped.")
            return
        if not math.isnan(trainer.step_loss):
            self._losses.append(trainer.step_loss)
        if not self._is_due(is_last=step >= state.max_steps):
            return
        loss = math.fsum(self._losses) / len(self._losses) if self._losses else math.nan
        self._losses = []
        memory = self._memory()
        if not self._is_main:
            self._journal.write("step", step, **memory)
            return
        self._journal.write(
            "step",
            step,
            loss=loss,
            tokens=float(state.num_input_tokens_seen),
            busy_seconds=self._clock.busy_seconds,
            learning_rate=self._rate,
            loss_scale=loss_scale(trainer),
            **memory,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say what a validation measured, and the norm of the gradients, which only the Trainer knows."""
        if not self._is_main or not logs:
            return
        if HELD_OUT_LOSS in logs:
            measured = {name: logs.get(name) for name in (ACCURACY, MACRO_F1, GENERAL_LOSS)}
            tokens = float(state.num_input_tokens_seen)
            self._journal.write("validation", state.global_step, loss=logs[HELD_OUT_LOSS], tokens=tokens, **measured)
        elif "grad_norm" in logs and time.monotonic() - self._said <= _LEAST_SECONDS:
            self._journal.write("step", state.global_step, gradient_norm=float(logs["grad_norm"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that there is a checkpoint."""
        if self._is_main:
            self._journal.write("saved", state.global_step, "Saved.")

    def _is_due(self, *, is_last: bool) -> bool:
        """Whether to write a line now."""
        now = time.monotonic()
        gap = max(_LEAST_SECONDS, _SHARE * (now - self._began)) if self._count >= _EACH_STEP else 0.0
        if not self._is_main:
            gap = max(gap, _MEMORY_SECONDS) if self._count else 0.0
        if now - self._said < gap and not is_last:
            return False
        self._said, self._count = now, self._count + 1
        return True

    def _memory(self) -> dict[str, float]:
        """Peak memory of this process so far: of its fullest GPU, or on a CPU resident memory as far as looked at."""
        import torch

        if not self._plan.hardware.is_gpu:
            self._resident_gib = max(self._resident_gib, _resident_gib())
            return {"allocated_gib": self._resident_gib}
        devices = range(torch.cuda.device_count())
        return {
            "allocated_gib": max((torch.cuda.max_memory_allocated(i) for i in devices), default=0) / _GIB,
            "reserved_gib": max((torch.cuda.max_memory_reserved(i) for i in devices), default=0) / _GIB,
        }


def _resident_gib() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / _GIB

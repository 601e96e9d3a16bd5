"""The result of a training: the numbers for the metrics, the manifest and the page."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from thriftune import artifacts, distributed
from thriftune.checkpoints.resumed import Resumed
from thriftune.config import RunConfig
from thriftune.errors import DivergedError
from thriftune.gpu_hours import GpuHours
from thriftune.models.saving import SavedWeights
from thriftune.overhead import START_GIB
from thriftune.training.guards.oom import Halvings
from thriftune.training.guards.resources import FillWarning, ResourceWatch, Samples
from thriftune.training.held_out import ACCURACY, GENERAL_LOSS, MACRO_F1, EvalReport
from thriftune.training.memory_watch import MemoryUse, PeakMemory, warn_if_far_off
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import TrainerState

    from thriftune.training.resumable import ResumableTrainer

# Key in the Trainer's log, beside `loss`.
HELD_OUT_LOSS = "eval_loss"
# Key in a checkpoint's manifest: time and tokens until then.
EFFORT = "effort"


@dataclass(frozen=True)
class Effort:
    """Time and tokens of the steps of a training, including those of earlier attempts.

    Attributes:
        seconds: Wall-clock time of the training loop, without steps that were lost and repeated.
        tokens: Tokens trained on in that time, without padding, over all ranks.
    """

    seconds: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True)
class Spent:
    """Time, tokens and memory that an attempt used.

    Attributes:
        effort: Time and tokens of all attempts.
        memory: Peak memory of this attempt.
        resources: The watch over memory and disk in this attempt.
        resumed_at: Step that it resumed from; 0 if it started at the first step.
        remarks: Sentences about the differences from the run that it resumed from.
    """

    effort: Effort
    memory: MemoryUse
    resources: ResourceWatch
    resumed_at: int
    remarks: list[str]


@dataclass(frozen=True)
class Pace:
    """How fast the last attempt at a training was.

    Attributes:
        steps: Optimizer steps that were timed: all but the first of the attempt, in which libraries warm up.
        seconds_per_step: Mean seconds of these steps, without validation and checkpoints; 0 if none was timed.
        tokens_per_second: Tokens trained on per second of them, without padding, over all ranks; 0 if none was timed.
        loading_seconds: From the model's files on this disk to the first validation or step: loading, quantizing,
            making the trainer, and restoring its state.
    """

    steps: int
    seconds_per_step: float
    tokens_per_second: float
    loading_seconds: float


@dataclass(frozen=True)
class Validation:
    """The held-out loss at one step.

    Attributes:
        step: Optimizer steps done.
        tokens: Tokens trained on until then, without padding, over all ranks.
        loss: Mean negative log-likelihood per trained token of the held-out rows, in nats; of a classifier, per row.
        accuracy: Share of the rows whose class was named; None for a language model.
        macro_f1: Mean of the F1 of the classes; None for a language model.
        general_loss: Mean per token of the right answers to general questions, in nats; None where not measured.
    """

    step: int
    tokens: float
    loss: float
    accuracy: float | None = None
    macro_f1: float | None = None
    general_loss: float | None = None

    @property
    def rank(self) -> float:
        """The loss, to find the lowest: one that is not a number is higher than all others."""
        return math.inf if math.isnan(self.loss) else self.loss


# Told of all validations after the first step, it says whether a training goes on.
GoesOn = Callable[[Sequence[Validation]], bool]


@dataclass(frozen=True)
class Asked:
    """What a run asks its model before and after training.

    Attributes:
        prompts: The prompts of its file; none stands for the first held-out rows.
        max_new_tokens: Longest answer, in tokens.
    """

    prompts: list[str]
    max_new_tokens: int

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """What a run asks."""
        return cls(list(config.evaluation.prompts), config.evaluation.max_new_tokens)

    @property
    def facts(self) -> dict[str, str]:
        """What the index of results says of it: a digest, as prompts are the user's own."""
        return {"asked": artifacts.key_of(json.dumps([self.prompts, self.max_new_tokens]))}


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training, over all its ranks.

    Attributes:
        steps: Optimizer steps done.
        seconds: Wall-clock time of the training loop, over all attempts, without steps that were repeated.
        tokens_per_second: Tokens trained on per second of that time, without padding, over all ranks.
        loss_steps: Steps at which the loss was logged.
        losses: Training loss at those steps, in nats, averaged over the steps since the one logged before.
        loss_tokens: Tokens trained on up to those steps, without padding, over all ranks.
        validations: Held-out loss before the first step, in between, and after the last one.
        before: What was measured before the first step; None if the training resumed from a checkpoint that does not
            contain it.
        after: What was measured of the weights that are the result.
        kept_step: Step whose weights are the result.
        checkpoint_steps: Steps at which checkpoints were written.
        memory: Peak from loading to the last step, in the last attempt, with the plan's prediction.
        resumed_at: Step of the checkpoint that the last attempt resumed from; 0 if it started at the first step.
        halvings: How often memory ran out, and the micro batch before and after.
        skipped_steps: Steps whose batch was skipped, because the loss diverged there.
        resources: Memory and disk over the last attempt, on the node of rank 0.
        warnings: Warnings about what was nearly full there.
        remarks: Sentences about the differences from the run that it resumed from, with the value that was used; and
            one about a result that is not what was trained.
        saved: How the weights are saved, and what rounding does to the loss; None where nothing is rounded: adapters,
            and weights that the run asks for in fp32.
        asked: What it was asked; None in results of older versions.
        pace: How fast the last attempt was; None in results of older versions.
        gpu_hours: GPU-hours of all attempts; None where no lines were kept.
    """

    steps: int
    seconds: float
    tokens_per_second: float
    loss_steps: list[int]
    losses: list[float]
    loss_tokens: list[float]
    validations: list[Validation]
    before: EvalReport | None
    after: EvalReport
    kept_step: int
    checkpoint_steps: list[int]
    memory: MemoryUse
    resumed_at: int
    halvings: Halvings
    skipped_steps: list[int]
    resources: Samples
    warnings: list[FillWarning]
    remarks: list[str] = field(default_factory=list)
    saved: SavedWeights | None = None
    asked: Asked | None = None
    pace: Pace | None = None
    gpu_hours: GpuHours | None = None


def effort_so_far(trainer: "ResumableTrainer", resumed: Resumed | None) -> Callable[[], Effort]:
    """A function that gives the time and tokens of the training so far, earlier attempts included.

    Args:
        trainer: The trainer.
        resumed: The checkpoint that it goes on from; None if it starts at the first step.
    """
    before = Effort(**resumed.content.get(EFFORT, {})) if resumed else Effort()
    started = time.monotonic()

    def spent() -> Effort:
        seconds = before.seconds + time.monotonic() - started - trainer.seconds_beside
        return Effort(seconds, float(trainer.state.num_input_tokens_seen))

    return spent


def logged_losses(state: "TrainerState", learning_rate: float) -> tuple[list[int], list[float], list[float]]:
    """Read the training loss from the Trainer's log.

    Args:
        state: The Trainer's state, after training.
        learning_rate: Learning rate of the run, for the message.

    Returns:
        Steps, losses in nats, and tokens trained on up to each step, without padding, over all ranks.

    Raises:
        DivergedError: The loss became infinite or not a number; such a model is not saved.
    """
    logged = [entry for entry in state.log_history if "loss" in entry]
    bad = next((entry for entry in logged if not math.isfinite(entry["loss"])), None)
    if bad is not None:
        raise DivergedError.single(
            "training.learning_rate",
            learning_rate,
            f"the loss is {bad['loss']} at step {bad['step']}.",
            "Lower the learning rate or raise warmup_share; on a GPU without bfloat16, look for overflow in fp16.",
        )
    steps, losses = [int(entry["step"]) for entry in logged], [float(entry["loss"]) for entry in logged]
    return steps, losses, [float(entry.get("num_input_tokens_seen", 0)) for entry in logged]


def logged_validations(state: "TrainerState") -> list[Validation]:
    """Read the held-out losses from the Trainer's log, each step once.

    Args:
        state: The Trainer's state.
    """
    by_step = {
        int(entry["step"]): Validation(
            int(entry["step"]),
            float(entry.get("num_input_tokens_seen", 0)),
            float(entry[HELD_OUT_LOSS]),
            entry.get(ACCURACY),
            entry.get(MACRO_F1),
            entry.get(GENERAL_LOSS),
        )
        for entry in state.log_history
        if HELD_OUT_LOSS in entry
    }
    return [by_step[step] for step in sorted(by_step)]


def memory_use(peak: PeakMemory, plan: TrainingPlan, *, has_trained: bool) -> MemoryUse:
    """The peak memory of all ranks, with the prediction for training. Collective: every rank calls it.

    Args:
        peak: Peak memory of this process.
        plan: The plan of the run, with its prediction.
        has_trained: Whether a step was done; else the prediction for training cannot be compared.
    """
    processes = distributed.gather_objects(peak.process_gib)
    per_node = plan.processes_per_node
    # Memory that a process held before: next to nothing in a worker, a whole pipeline in a local process.
    held = max(0.0, max(distributed.gather_objects(peak.start_gib)) - START_GIB)
    predicted = plan.memory.training_host_gib
    use = MemoryUse(
        device=max(distributed.gather_objects(peak.device_gib)) if plan.hardware.is_gpu else max(processes),
        predicted_device=plan.memory.allocated_gib + (0.0 if plan.hardware.is_gpu else held),
        host=max(sum(processes[first : first + per_node]) for first in range(0, len(processes), per_node)),
        predicted_host=predicted + (0.0 if plan.hardware.is_gpu else held * per_node),
        reserved=max(distributed.gather_objects(peak.reserved_gib)),
        context=max(distributed.gather_objects(peak.context_gib)),
    )
    if has_trained and distributed.current_rank().is_main:
        warn_if_far_off(use)
    return use

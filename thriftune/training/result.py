"""What a training did: the numbers that go to the metrics, the manifest and the page."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thriftune import distributed
from thriftune.errors import DivergedError
from thriftune.models.saving import SavedWeights
from thriftune.overhead import START_GIB
from thriftune.training.guards.oom import Halvings
from thriftune.training.guards.resources import FillWarning, Samples
from thriftune.training.held_out import EvalReport
from thriftune.training.memory_watch import MemoryUse, PeakMemory, warn_if_far_off
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import TrainerState

# In the Trainer's log, beside `loss`.
HELD_OUT_LOSS = "eval_loss"


@dataclass(frozen=True)
class Effort:
    """What the steps of a training took, those of earlier attempts included.

    Attributes:
        seconds: Wall-clock time of the training loop, without steps that were lost and done again.
        tokens: Trained through in that time, without padding, over all ranks.
    """

    seconds: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True)
class Validation:
    """The held-out loss at one step.

    Attributes:
        step: Optimizer steps done.
        tokens: Trained through by then, without padding, over all ranks.
        loss: Mean negative log-likelihood per trained token of the held-out rows, in nats.
    """

    step: int
    tokens: float
    loss: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training did, over all its ranks.

    Attributes:
        steps: Optimizer steps done.
        seconds: Wall-clock time of the training loop, over all attempts, without steps that were done again.
        tokens_per_second: Tokens trained through in that time, without padding, over all ranks.
        loss_steps: Steps at which the loss was logged.
        losses: Training loss at those steps, averaged over the steps since the one before.
        loss_tokens: Tokens trained through by those steps, without padding, over all ranks.
        validations: Held-out loss before the first step, in between, and after the last one.
        before: What was measured before the first step; None where the training went on from a checkpoint that does
            not say it.
        after: What was measured of the weights that are the result.
        kept_step: Step whose weights are the result.
        checkpoint_steps: Steps at which checkpoints were written.
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


def logged_losses(state: "TrainerState", learning_rate: float) -> tuple[list[int], list[float], list[float]]:
    """The training loss as the Trainer logged it.

    Args:
        state: The Trainer's, after training.
        learning_rate: Of the run, for the message.

    Returns:
        Steps, losses in nats, and tokens trained through by then, without padding, over all ranks.

    Raises:
        DivergedError: It became infinite or not a number: a model of that kind is not saved.
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
    """The held-out losses that were logged, each step once.

    Args:
        state: The Trainer's.
    """
    by_step = {
        int(entry["step"]): Validation(
            int(entry["step"]), float(entry.get("num_input_tokens_seen", 0)), float(entry[HELD_OUT_LOSS])
        )
        for entry in state.log_history
        if HELD_OUT_LOSS in entry
    }
    return [by_step[step] for step in sorted(by_step)]


def memory_use(peak: PeakMemory, plan: TrainingPlan, *, has_trained: bool) -> MemoryUse:
    """The peaks of all ranks beside the prediction, which is of training. Collective: every rank calls it.

    Args:
        peak: The memory of this process.
        plan: The plan of the run, with the memory it predicts.
        has_trained: Whether a step was done, without which a prediction of training says nothing.
    """
    processes = distributed.gather_objects(peak.process_gib)
    per_node = plan.processes_per_node
    # What a process held before: nothing to speak of in a worker of its own, a whole pipeline in a local process.
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

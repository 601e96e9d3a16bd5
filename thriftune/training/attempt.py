"""One attempt at a training: restored, guarded and measured; with what it leaves to the next attempt if it fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from thriftune import artifacts, distributed
from thriftune.checkpoints import identity
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.resumed import Resumed
from thriftune.checkpoints.resumption import BEST, REMARKS, Checkpoints
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, count_rows
from thriftune.disk import writing_to
from thriftune.errors import EndedAtOnceError, StartAgainError, TransientError
from thriftune.strategies import STRATEGIES
from thriftune.training.adjustments import Adjustments
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.faults import kind_of
from thriftune.training.guards.resources import ResourceWatch
from thriftune.training.guards.stall import StallWatch
from thriftune.training.memory_watch import PeakMemory, return_freed_blocks
from thriftune.training.notice import Notice
from thriftune.training.result import EFFORT, Effort, GoesOn, Spent, effort_so_far, memory_use
from thriftune.training.spending import Spending
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from thriftune.training.callbacks import StepClock, ValidationCallback
    from thriftune.training.resumable import ResumableTrainer
    from thriftune.training.telling import Telling

logger = logging.getLogger(__name__)

_NOTES = "notes"  # key of the trainer's notes in each checkpoint


@dataclass(frozen=True)
class Loaded:
    """A training that is ready to start.

    Attributes:
        trainer: The trainer, with the model.
        validation: Measures the held-out loss.
        clock: Times loading and steps.
        telling: Writes the lines of the training.
        goes_on: Told of each validation, it says whether the training goes on; None to be told of none.
    """

    trainer: "ResumableTrainer"
    validation: "ValidationCallback"
    clock: "StepClock"
    telling: "Telling"
    goes_on: GoesOn | None = None


class Attempt:
    """One attempt at a training, in each of its processes.

    Args:
        config: The run.
        planned: Its plan.
        checkpoints: Checkpoints of the training; None if none are saved.
        adjustments: What earlier attempts changed about it.
        folder: Where the Trainer writes.
        seconds_before: Seconds that this process took before, to fetch model and rows.

    Attributes:
        plan: The plan, with the present batch.
        adjustments: What earlier attempts changed.
        folder: Where the Trainer writes.
        stall: Ends the process when no step is done for too long.
    """

    plan: TrainingPlan
    adjustments: Adjustments
    folder: Path
    stall: StallWatch

    def __init__(
        self,
        config: RunConfig,
        planned: TrainingPlan,
        checkpoints: Checkpoints | None,
        adjustments: Adjustments,
        folder: Path,
        seconds_before: float = 0.0,
    ) -> None:
        self.adjustments, self.folder = adjustments, folder
        self.plan = adjustments.applied_to(planned)
        self.stall = StallWatch(config.training.stall_timeout)
        self._config, self._planned, self._checkpoints = config, planned, checkpoints
        self._notice: Notice | None = None
        self._spending = Spending(config, planned, checkpoints.spent, seconds_before) if checkpoints else None

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        plan: TrainingPlan,
        model_dir: Path,
        dataset_dir: Path,
        place: CheckpointLocation | None,
        scratch: Path,
        seconds_before: float = 0.0,
    ) -> Self:
        """Start an attempt with what earlier attempts left in the store. Collective: every rank calls it.

        Args:
            config: The run.
            plan: Its plan.
            model_dir: The base model.
            dataset_dir: The prepared dataset.
            place: Where checkpoints are; None if none are saved.
            scratch: Folder that the Trainer may write to if no checkpoints are saved.
            seconds_before: Seconds that this process took before, to fetch model and rows.
        """
        if place is None:
            return cls(config, plan, None, Adjustments(), scratch)
        own = identity.of(
            config,
            plan,
            model=artifacts.source_version(model_dir),
            dataset=str(artifacts.read_manifest(dataset_dir)["fingerprint"]),
            rows=count_rows(dataset_dir, TRAIN),
        )
        checkpoints = Checkpoints(place, config.checkpoints, own, STRATEGIES[plan.strategy].reshard)
        adjustments = Adjustments.from_json(checkpoints.adjustments())
        return cls(config, plan, checkpoints, adjustments, checkpoints.folder, seconds_before)

    def train(self, load: Callable[[Resumed | None], Loaded]) -> tuple[Loaded, Spent]:
        """Load and train, and measure from the first byte loaded to the last step. Collective: every rank calls it.

        Args:
            load: Makes the trainer, including the model, for a checkpoint to resume from or None.

        Returns:
            The training after its last step, and what it used.

        Raises:
            StartAgainError: The training was changed so that it can continue from its last checkpoint.
            DivergedError: The loss diverged.
            BudgetError: Going on would cost more than the run may cost.
            TransientError: Another attempt may succeed.
        """
        return_freed_blocks()
        if self._spending:
            self._notice = Notice.listen_for_sigterm()
            self._spending.begin()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        with PeakMemory() as peak, ResourceWatch(self.folder) as resources, self._classify_errors(), self._writing():
            resumed = self._checkpoints.restore() if self._checkpoints else None
            loaded = load(resumed)
            trainer = loaded.trainer
            trainer.notes.update(resumed.content.get(_NOTES, {}) if resumed else {})
            effort = effort_so_far(trainer, resumed)
            self._add_callbacks(loaded, resumed, effort)
            with self.stall:
                trainer.train(resume_from_checkpoint=str(resumed.directory) if resumed else None)
            spent = effort()
        if self._notice:
            self._notice.end_at_once()
        resumed_at = resumed.step if resumed else 0
        memory = memory_use(peak, self._planned, has_trained=trainer.state.global_step > resumed_at)
        return loaded, Spent(spent, memory, resources, resumed_at, list(resumed.remarks) if resumed else [])

    def take_best(self, loaded: Loaded) -> int:
        """Load the weights with the lowest held-out loss, if the run keeps those. Collective: every rank calls it.

        Args:
            loaded: The training after its last step.

        Returns:
            The step whose weights the model has now. If that step has no checkpoint in the store (its upload failed, or
            was skipped for a newer one), the step with the next lowest loss is used, with a warning.

        Raises:
            TransientError: The store does not answer.
        """
        step = loaded.trainer.state.global_step
        if self._config.training.keep == "last" or self._checkpoints is None:
            return step
        self._checkpoints.wait()
        distributed.barrier()
        for validation in loaded.validation.validator.ranked():
            if validation.step == step:
                break
            best = self._checkpoints.fetch(validation.step)
            if best is None:
                logger.warning("There is no checkpoint of step %d, which has a lower held-out loss", validation.step)
                continue
            if distributed.current_rank().is_main:
                logger.info("Keeping the weights of step %d, whose held-out loss is %.4f", best.step, validation.loss)
            strategy = STRATEGIES[self._planned.strategy]
            strategy.load_trained(loaded.trainer, best.directory, is_converted=best.is_converted)
            return best.step
        return step

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Make the result in this block: a notice ends it at once, when the last checkpoint is in the store."""
        try:
            yield
        except EndedAtOnceError:
            if self._checkpoints:
                self._checkpoints.wait(self._checkpoints.grace_seconds)
            raise
        self._stop_listening()

    def finish(self) -> None:
        """Wait for the last upload, and clear this disk. Collective; until the result is written it is needed."""
        if self._checkpoints:
            self._checkpoints.finish()

    def stop(self) -> None:
        """Stop the threads and signal handlers of the training, in a process that continues."""
        self._stop_listening()
        if self._checkpoints:
            self._checkpoints.stop_saving()
        self.leave()

    def leave(self) -> None:
        """Let another execution go on from the checkpoints of this one; and stop listening, unless a notice ends it."""
        if self._notice and not self._notice.was_given:
            self._notice.stop()
        if self._spending:
            self._spending.note(at_once=True)
        if self._checkpoints:
            self._checkpoints.leave()

    def _stop_listening(self) -> None:
        if self._notice:
            self._notice.stop()

    def _add_callbacks(self, loaded: Loaded, resumed: Resumed | None, effort: Callable[[], Effort]) -> None:
        """Add the callbacks that check each step, which waits for the GPU, then time, tell, validate and save."""
        from thriftune.training.budget_stop import BudgetCallback
        from thriftune.training.early_stop import EarlyStop
        from thriftune.training.guarding import Guarding
        from thriftune.training.resumable import CheckpointCallback

        trainer, validation = loaded.trainer, loaded.validation
        seen = resumed.content.get("guard") if resumed else None
        guard = DivergenceGuard.from_state(seen) if seen else DivergenceGuard()
        divergence = self._config.training.on_divergence
        # First the guard: a step that diverged is neither validated nor saved.
        trainer.add_callback(Guarding(trainer, guard, self.stall, divergence, self.adjustments, self._checkpoints))
        trainer.add_callback(loaded.clock)
        trainer.add_callback(loaded.telling.watching(trainer))
        trainer.add_callback(validation)
        if not self._checkpoints:
            return
        self._checkpoints.start_saving()
        keeps_best = self._config.training.keep == "best"

        def content() -> dict[str, object]:
            return {
                _NOTES: trainer.notes,
                "guard": guard.state(),
                "micro_batch": self.plan.micro_batch,
                EFFORT: asdict(effort()),
                REMARKS: list(resumed.remarks) if resumed else [],
                BEST: [ranked.step for ranked in validation.validator.ranked()] if keeps_best else [],
            }

        def is_best(step: int) -> bool:
            return keeps_best and validation.improved_at == step

        assert self._notice is not None
        assert self._spending is not None
        given = (self._checkpoints, self._notice, content, self.stall, guard, is_best)
        trainer.add_callback(CheckpointCallback(*given, lambda: trainer.written))
        trainer.add_callback(BudgetCallback(self._spending, self._checkpoints, guard, self.stall))
        trainer.add_callback(EarlyStop(loaded.goes_on, self._checkpoints, guard, self.stall))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing_to(self.folder, "training and writing checkpoints"):
            yield

    @contextmanager
    def _classify_errors(self) -> Iterator[None]:
        """Turn errors into those that decide about another attempt; if memory ran out, make the micro batch smaller."""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            kind = kind_of(error)
            if kind == "memory" and self._checkpoints:
                changed = self.adjustments.after_out_of_memory(self.plan)
                self._checkpoints.adjust(changed.as_json())
                now = f"micro batch {changed.micro_batch} x accumulation {changed.accumulation}"
                raise StartAgainError(f"Memory ran out: {error}. Continuing with {now}.") from error
            if kind == "transient":
                rank = distributed.current_rank().index
                raise TransientError(f"Rank {rank} lost the other ranks, or its node: {error}") from error
            raise

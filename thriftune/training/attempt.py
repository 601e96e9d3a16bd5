"""One attempt at a training: restored, guarded and measured; and what it leaves to the next if it does not end well."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import artifacts, distributed
from thriftune.checkpoints import identity
from thriftune.checkpoints.resumption import REMARKS, CheckpointPlace, Checkpoints, Resumed
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, count_rows
from thriftune.disk import writing_to
from thriftune.errors import StartAgainError, TransientError
from thriftune.strategies.zero.universal import to_universal
from thriftune.training.adjustments import Adjustments
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.faults import kind_of
from thriftune.training.guards.resources import ResourceWatch
from thriftune.training.guards.stall import StallWatch
from thriftune.training.memory_watch import PeakMemory, return_freed_blocks
from thriftune.training.notice import Notice
from thriftune.training.run_record import RunRecord
from thriftune.training.trainer import Effort, TrainingResult, result_of
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

_NOTES = "notes"  # of the trainer, in each checkpoint

# Makes the trainer, model and all: for the plan as it is now, the checkpoint to go on from, and steps to leave out.
Load = Callable[[TrainingPlan, Resumed | None, Adjustments], "ResumableTrainer"]


class Attempt:
    """One attempt at a training, in each of its processes.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: The base model.
        dataset_dir: The prepared dataset.
        place: Where checkpoints lie; None: none are saved.
        scratch: Folder the Trainer may write to.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: TrainingPlan,
        model_dir: Path,
        dataset_dir: Path,
        place: CheckpointPlace | None,
        scratch: Path,
    ) -> None:
        self._config, self._planned = config, plan
        own = identity.of(
            config,
            plan,
            model=artifacts.source_version(model_dir),
            dataset=str(artifacts.read_manifest(dataset_dir)["fingerprint"]),
            rows=count_rows(dataset_dir, TRAIN),
        )
        convert = to_universal if plan.zero_stage else None
        self._checkpoints = Checkpoints(place, config.checkpoints, own, convert) if place else None
        self.folder = self._checkpoints.folder if self._checkpoints else scratch
        self._adjustments = (
            Adjustments.from_json(self._checkpoints.adjustments()) if self._checkpoints else Adjustments()
        )
        self._plan = self._adjustments.applied_to(plan)
        self._stall = StallWatch(config.training.stall_timeout)
        self._notice: Notice | None = None

    def train(self, load: Load) -> tuple["ResumableTrainer", TrainingResult]:
        """Load and train, measuring from the first byte loaded to the last step. Collective: every rank calls it.

        Args:
            load: Makes the trainer.

        Returns:
            The trainer after training, and what was measured, the same on every rank.

        Raises:
            StartAgainError: The run was changed so that it can go on, from its last checkpoint.
            DivergedError: The loss diverged.
            TransientError: Another attempt may succeed.
        """
        return_freed_blocks()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        with PeakMemory() as peak, ResourceWatch(self.folder) as resources, self._faults_told_apart(), self._writing():
            resumed = self._checkpoints.restore() if self._checkpoints else None
            trainer = load(self._plan, resumed, self._adjustments)
            trainer.notes.update(resumed.content.get(_NOTES, {}) if resumed else {})
            effort = _effort(trainer, resumed)
            self._guard(trainer, resumed, effort)
            with self._stall:
                trainer.train(resume_from_checkpoint=str(resumed.directory) if resumed else None)
            spent = effort()
        if self._notice:
            self._notice.stop()
        return trainer, result_of(
            trainer,
            self._planned,
            peak,
            spent,
            resumed_at=resumed.step if resumed else 0,
            halvings=self._adjustments.record(self._planned.micro_batch),
            skipped_steps=list(self._adjustments.skipped_steps),
            remarks=list(resumed.remarks) if resumed else [],
            resources=resources,
        )

    def finish(self) -> None:
        """Wait until the last checkpoint is in the store, and leave nothing on this disk. Collective.

        To be called when the result is written: what is cut off before goes on from there, and writes it.
        """
        if self._checkpoints:
            self._checkpoints.finish()

    def stop(self) -> None:
        """Let go of what goes on beside the training, in a process that lives on."""
        if self._notice:
            self._notice.stop()
        if self._checkpoints:
            self._checkpoints.stop_saving()

    def _guard(self, trainer: "ResumableTrainer", resumed: Resumed | None, effort: Callable[[], Effort]) -> None:
        """Add what looks at each step, and what saves after it."""
        from thriftune.training.guarding import Guarding
        from thriftune.training.resumable import KeepCheckpoints

        seen = resumed.content.get("guard") if resumed else None
        guard = DivergenceGuard.from_state(seen) if seen else DivergenceGuard()
        divergence = self._config.training.on_divergence
        # First: a step that diverged is not saved.
        trainer.add_callback(Guarding(trainer, guard, self._stall, divergence, self._adjustments, self._checkpoints))
        if self._checkpoints:
            self._checkpoints.start_saving()

            def content() -> dict[str, object]:
                return {
                    _NOTES: trainer.notes,
                    "guard": guard.state(),
                    "micro_batch": self._plan.micro_batch,
                    "effort": asdict(effort()),
                    REMARKS: list(resumed.remarks) if resumed else [],
                }

            self._notice = Notice.heard()
            trainer.add_callback(KeepCheckpoints(self._checkpoints, self._notice, content, self._stall, guard))

    def _writing(self) -> AbstractContextManager[None]:
        return writing_to(self.folder, "training and writing checkpoints")

    @contextmanager
    def _faults_told_apart(self) -> Iterator[None]:
        """Give up on what another attempt would fail of too; change what can be changed; leave the rest to the next."""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            kind = kind_of(error)
            if kind == "memory" and self._checkpoints:
                changed = self._adjustments.after_out_of_memory(self._plan)
                self._checkpoints.adjust(changed.as_json())
                now = f"micro batch {changed.micro_batch} x accumulation {changed.accumulation}"
                raise StartAgainError(f"Memory ran out: {error}. Going on with {now}.") from error
            if kind == "transient":
                rank = distributed.current_rank().index
                raise TransientError(f"Rank {rank} lost the others, or its node: {error}") from error
            raise


def _effort(trainer: "ResumableTrainer", resumed: Resumed | None) -> Callable[[], Effort]:
    """Tells what the training took so far, from now on."""
    before = Effort(**resumed.content.get("effort", {})) if resumed else Effort()
    started = time.monotonic()
    return lambda: before.with_attempt(trainer, time.monotonic() - started - trainer.seconds_beside)


def run_record(
    config: RunConfig, plan: TrainingPlan, model_dir: Path, dataset_dir: Path, result: TrainingResult
) -> dict[str, object]:
    """What the manifest of a trained directory says of the run that made it."""
    version, fingerprint = artifacts.source_version(model_dir), artifacts.read_manifest(dataset_dir)["fingerprint"]
    return RunRecord(config, plan, version, fingerprint, result).as_json()

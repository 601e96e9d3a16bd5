"""Resume where this training stopped: all ranks agree on a checkpoint; one process per node uploads new ones.

Checkpoints lie where every attempt and execution of the same training looks for them. One attempt at a time writes
there, by a lease.
"""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

from thriftune import distributed
from thriftune.checkpoints import changes, layout, restoring
from thriftune.checkpoints.identity import Comparison, Identity, compare, in_manifest
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.ownership import Ownership
from thriftune.checkpoints.resume_from import OR_ELSE, none_whole
from thriftune.checkpoints.resumed import Resumed
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.checkpoints.spent import SpentTime
from thriftune.config import CheckpointConfig
from thriftune.errors import ConfigError, TransientError
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

# Key in the manifest of a checkpoint: `Resumed.remarks` of the run that wrote it.
REMARKS = "remarks"
# Another key: steps by falling worth; the best one that is in the store is kept even when newer ones exist.
BEST = "best"
# Another key: who wrote it.
_WRITTEN_BY = "written_by"


class Checkpoints:
    """The checkpoints of one training: all ranks look for them together, and one process per node uploads them.

    Args:
        place: Where they are.
        config: How many to keep, how often to save, and a run to resume from.
        own: Identity of the training; only a checkpoint with the same identity can be resumed from.
        convert: Converts a checkpoint for another number of ranks; None if checkpoints do not depend on that number.

    Attributes:
        spent: The time of all attempts.

    Raises:
        LeaseError: Another execution trains the same at this moment.
        TransientError: The store does not answer.
    """

    spent: SpentTime

    def __init__(
        self,
        place: CheckpointLocation,
        config: CheckpointConfig,
        own: Identity,
        convert: Callable[[Path], Path] | None = None,
    ) -> None:
        self._place, self._config, self._own, self._convert = place, config, own, convert
        self._rank = distributed.current_rank()
        self._saver: BackgroundSaver | None = None
        self._written: Future[None] | None = None
        self._restored = True
        self._store = Store(place.here)
        self._ownership = Ownership(self._store, place)
        self.spent = SpentTime(self._store, place.writer)

    @property
    def folder(self) -> Path:
        """Where the Trainer writes checkpoints before they are uploaded."""
        return self._place.scratch / "written"

    @property
    def grace_seconds(self) -> float:
        """Seconds that a process may still run after the notice that its node is going away."""
        return self._place.grace_seconds

    @property
    def config(self) -> CheckpointConfig:
        """How many checkpoints to keep, and how often to save."""
        return self._config

    def adjustments(self) -> dict[str, Any]:
        """What this training changed about itself, in any attempt so far. Collective: every rank calls it."""
        return distributed.from_main(lambda: changes.read(self._store, self._ownership.execution))

    def adjust(self, content: dict[str, Any]) -> None:
        """Record what is changed from now on. Several ranks may write the same content.

        Args:
            content: The changes, as values for JSON.
        """
        changes.write(self._store, self._ownership.execution, content)

    def drop_from(self, step: int) -> None:
        """Remove the checkpoints of a step and of later ones, so that nothing resumes from them. Collective.

        Args:
            step: Optimizer step.
        """
        self.wait()
        distributed.barrier()
        if self._rank.is_main:
            for _, manifest in restoring.complete([self._store]):
                if manifest.step >= step:
                    self._store.remove(layout.checkpoint_name(manifest.step))
        distributed.barrier()

    def restore(self) -> Resumed | None:
        """Download the newest checkpoint that is complete on every node. Collective: every rank calls it.

        Returns:
            The checkpoint; None if there is none, so that the training starts at the first step.

        Raises:
            ConfigError: A checkpoint is of another training, or none that `checkpoints.resume_from` names is complete.
            TransientError: The store does not answer.
        """
        damages = []
        for prefix, manifest in self._candidates():
            directory = self._place.scratch / "resumed" / f"checkpoint-{manifest.step}"
            problems = self._fetch(prefix, manifest, directory)
            if not problems:
                remarks = self._compared(prefix, manifest).remarks
                for remark in remarks:
                    logger.warning("%s", remark)
                logger.info("Resuming from step %d%s (%s)", manifest.step, self._of_another(manifest), prefix)
                self._clear_written()
                self._ownership.begins_at(manifest.step if prefix == self._store.prefix else 0)
                return self._resumed(manifest, directory, remarks)
            damages += problems
        self._clear_written()
        self._ownership.begins_at(0)
        if self._config.resume_from:
            raise distributed.from_main(lambda: none_whole(str(self._config.resume_from), damages))
        return None

    def fetch(self, step: int) -> Resumed | None:
        """Download the checkpoint of one step, if it is complete on every node. Collective: every rank calls it.

        Args:
            step: Optimizer steps done.

        Raises:
            TransientError: The store does not answer.
        """
        for prefix, manifest in self._candidates():
            directory = self._place.scratch / "resumed" / f"checkpoint-{manifest.step}"
            if manifest.step == step and not self._fetch(prefix, manifest, directory):
                return self._resumed(manifest, directory, ())
        return None

    def start_saving(self) -> None:
        """Start uploading what is saved from now on, in one process per node."""
        if self._rank.local_index == 0:
            self._saver = BackgroundSaver(
                self._store,
                node=self._rank.node,
                nodes=self._rank.nodes,
                world_size=self._rank.world_size,
                keep=self._config.keep_checkpoints,
                require_held=self._ownership.require_held,
            )
        distributed.barrier()  # the saver of each node removes what it left behind before any of them saves

    def save(self, directory: Path, step: int, content: dict[str, Any], written: Future[None] | None = None) -> None:
        """Hand over what the Trainer wrote. Collective: every rank calls it after writing its own files.

        Args:
            directory: The checkpoint that the Trainer wrote.
            step: Optimizer steps done.
            content: Values for JSON that the manifest gets in addition.
            written: Done when the files of all ranks are whole; None if this rank's are. Uploading begins then.

        Raises:
            LeaseError: Another attempt has taken over.
        """
        self._written = written
        distributed.barrier()
        if self._saver is not None:
            noted = {**in_manifest(self._own), _WRITTEN_BY: self._ownership.execution, **content}
            self._saver.save(directory, step, noted, best=content.get(BEST, ()), written=written)

    def forget_restored(self) -> None:
        """Remove the restored files, which are loaded by now."""
        if self._restored and self._rank.local_index == 0:
            shutil.rmtree(self._place.scratch / "resumed", ignore_errors=True)
        self._restored = False

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until what was handed over is in the store.

        Args:
            seconds: Longest wait; None to wait as long as it takes.

        Returns:
            Whether it is there, as far as this process knows.
        """
        return self._saver.wait(seconds) if self._saver is not None else self.wait_for_files(seconds)

    def wait_for_files(self, seconds: float | None = None) -> bool:
        """Wait until the files of what was handed over are written, or could not be.

        Args:
            seconds: Longest wait; None to wait as long as it takes.

        Returns:
            Whether they are.
        """
        return self._written is None or not wait_for([self._written], seconds).not_done

    def stop_saving(self) -> None:
        """Wait for the uploads of what was handed over, and accept no more."""
        self.wait_for_files()  # those of this rank too, before its process group goes
        if self._saver is not None:
            self._saver.close()
            self._saver = None

    def leave(self) -> None:
        """Let another execution go on from here. Not collective: the others may be gone."""
        self._ownership.give_back()

    def finish(self) -> None:
        """Finish the uploads, and remove everything from this disk."""
        self.stop_saving()
        distributed.barrier()
        self.leave()
        if self._rank.local_index == 0:
            shutil.rmtree(self._place.scratch, ignore_errors=True)

    def _of_another(self, manifest: Manifest) -> str:
        """Who saved a checkpoint, if that was another execution."""
        by = manifest.content.get(_WRITTEN_BY)
        return f", which execution {by} saved" if by and by != self._ownership.execution else ""

    def _resumed(self, manifest: Manifest, directory: Path, remarks: tuple[str, ...]) -> Resumed:
        """A downloaded checkpoint, converted on each node if another number of ranks wrote it."""
        convert = self._convert if manifest.world_size != self._rank.world_size else None
        if convert is not None:
            converted = directory.with_name(f"{directory.name}-converted")
            logger.info("Converting it from %d ranks to %d", manifest.world_size, self._rank.world_size)
            fetched = directory

            def put_in_place() -> None:
                convert(fetched).rename(converted)

            distributed.once_per_node(put_in_place)
            directory = converted
        content = dict(manifest.content)
        known = [*content.get(REMARKS, []), *remarks]
        return Resumed(manifest.step, directory, convert is not None, content, tuple(dict.fromkeys(known)))

    def _clear_written(self) -> None:
        """Remove what a killed process left here; its useful files are hard-linked by now."""
        distributed.barrier()
        if self._rank.local_index == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        distributed.barrier()

    def _candidates(self) -> list[tuple[str, Manifest]]:
        """Complete checkpoints, newest first, the same on every rank: one asks the store and tells the others."""

        def look() -> list[tuple[str, bytes]]:
            other = self._config.resume_from
            found = restoring.complete([self._store, *([Store(other)] if other else [])])
            if problems := [p for store, manifest in found for p in self._compared(store.prefix, manifest).problems]:
                raise ConfigError(list(dict.fromkeys(problems)))
            return [(store.prefix, manifest.to_bytes()) for store, manifest in found]

        return [(prefix, Manifest.from_bytes(data)) for prefix, data in distributed.from_main(look)]

    def _compared(self, prefix: str, manifest: Manifest) -> Comparison:
        other = self._config.resume_from
        is_own = not other or Store(other).prefix != prefix
        or_else = "run it where no checkpoints are" if is_own else OR_ELSE
        return compare(self._own, manifest.content, manifest.step, place=prefix, or_else=or_else)

    def _fetch(self, prefix: str, manifest: Manifest, directory: Path) -> list[str]:
        """Download the files that the ranks of each node need; return the problems of all nodes."""
        problems: list[str] = []
        unfetched: TransientError | None = None
        if self._rank.local_index == 0:
            wanted = restoring.needed_by(self._rank, manifest.world_size)
            try:
                problems = restoring.verify_and_fetch(Store(prefix), manifest, directory, wanted, self.folder)
            except (
                TransientError
            ) as error:  # raised below on every rank, as the others are waiting for this one's answer
                unfetched = error
        answers = distributed.gather_objects((problems, unfetched))
        if failed := [error for _, error in answers if error is not None]:
            raise failed[0]
        wrong = [problem for found, _ in answers for problem in found]
        for problem in wrong:
            logger.warning("The checkpoint of step %d is not used: %s", manifest.step, problem)
        return wrong

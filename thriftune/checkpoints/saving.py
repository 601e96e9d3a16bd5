"""Upload checkpoints in the background, while training goes on."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune.checkpoints import uploading
from thriftune.checkpoints.errors import IncompleteError, LeaseError
from thriftune.checkpoints.manifest import Manifest, as_json
from thriftune.checkpoints.pruning import prune
from thriftune.errors import ThriftuneError, TransientError, UserError
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

# Saves of this node that may fail in a row before training stops: without checkpoints its work could be lost.
FAILURES_IN_A_ROW = 3
# Seconds that a node waits for the others after uploading its own part: the slowest may have far more to upload.
GIVE_UP_S = 1800.0
# Seconds between two looks in the store at what other nodes did.
POLL_S = 0.5

_GIB = 2**30


@dataclass(frozen=True)
class _Save:
    directory: Path
    step: int
    content: dict[str, Any]
    best: Sequence[int]
    written: Future[None] | None


class BackgroundSaver:
    """Uploads the checkpoints of one node, in local rank 0. Every node must create its own before any node saves.

    Directories given to `save` belong to the saver, which deletes them when they are not needed: skipped, failed, or
    older than the newest complete one. The newest complete one always stays, for a restart on this node. So up to three
    are on the disk besides the one that training is writing: the complete one, one being uploaded and one waiting.

    The thread ends with the process, without waiting for an upload: call `close` to wait.

    Args:
        store: The training's prefix, the same on every node.
        node: This node, 0 to `nodes - 1`.
        nodes: Nodes of the job.
        world_size: Ranks of the job.
        keep: Complete checkpoints to keep in the store, at least 1.
        require_held: Refuses to write where another attempt has taken over.
        poll_s: Seconds between two looks in the store at what other nodes did.
        give_up_s: Seconds to wait for the other nodes.

    Attributes:
        failures: What went wrong, one line for each failed checkpoint.
        last_complete: Step of the newest checkpoint that became complete, or None.

    Raises:
        TransientError: The store does not answer.
    """

    failures: list[str]
    last_complete: int | None

    def __init__(
        self,
        store: Store,
        *,
        node: int,
        nodes: int,
        world_size: int,
        keep: int,
        require_held: Callable[[], None] = lambda: None,
        poll_s: float = POLL_S,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: the newest complete checkpoint is always kept.")
        self.failures = []
        self.last_complete = None
        self._store = store
        self._place = uploading.Place(node, nodes, world_size, poll_s, give_up_s)
        self._keep = keep
        self._require_held = require_held
        self._changed = threading.Condition()
        self._waiting: _Save | None = None
        self._running: _Save | None = None
        self._left_out: list[int] = []
        self._kept: Path | None = None
        self._in_a_row = 0
        self._last_error: Exception | None = None
        self._closing = False
        uploading.withdraw(store, node)
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def save(
        self,
        directory: Path,
        step: int,
        content: dict[str, Any],
        best: Sequence[int] = (),
        written: Future[None] | None = None,
    ) -> None:
        """Hand over a checkpoint and return at once. A checkpoint that is still waiting is skipped for this one.

        Args:
            directory: What this node's ranks wrote, complete when `written` is done. From now on it belongs to the
                saver.
            step: Optimizer steps done.
            content: Any JSON for the manifest, which gets that of node 0.
            best: Steps by falling worth. The first of them that is complete is kept even when newer ones exist.
            written: Done when all files are written; its error counts as a failure to upload. Those of all checkpoints
                before must be done. None if they are written already.

        Raises:
            TransientError: The last three saves of this node failed; this one was not started.
            UserError: The last three saves failed because the store refused access, so trying again would not help.
            LeaseError: Another attempt has taken over.
        """
        if not directory.is_dir():
            raise NotADirectoryError(f"{directory}: a checkpoint is a directory.")
        job = _Save(directory, step, as_json(content), tuple(best), written)
        with self._changed:
            if self._closing:
                raise RuntimeError("The saver was closed.")
            self._require_store()
            replaced, self._waiting = self._waiting, job
            if replaced is not None:
                self._left_out.append(replaced.step)
            self._changed.notify_all()
        if replaced is not None:
            logger.info("Skipping the checkpoint of step %d: uploads are slower than saves.", replaced.step)
            self._delete(replaced.directory)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is complete in the store, or has failed.

        Args:
            timeout: Longest wait in seconds; None to wait as long as it takes.

        Returns:
            Whether it is.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and self._running is None, timeout)

    def close(self) -> None:
        """Wait for everything handed over, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _require_store(self) -> None:
        is_lost = isinstance(self._last_error, LeaseError)  # none of the next would be saved either
        if self._in_a_row < FAILURES_IN_A_ROW and not is_lost:
            return
        message = f"The last {self._in_a_row} checkpoints could not be saved: {self.failures[-1]}"
        if isinstance(self._last_error, UserError):
            raise type(self._last_error)(self._last_error.problems) from self._last_error
        raise TransientError(message) from self._last_error

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._attempt(job)
            except Exception as error:  # a bug in this package: it should not end the training, but must be visible
                logger.exception("The checkpoint of step %d failed.", job.step)
                self.failures.append(f"step {job.step}: {type(error).__name__}: {error}")
            finally:
                with self._changed:
                    self._running = None
                    self._changed.notify_all()

    def _next(self) -> _Save | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            self._running, self._waiting = self._waiting, None
            return self._running

    def _attempt(self, job: _Save) -> None:
        started = time.monotonic()
        try:
            manifest = self._upload(job)
        except Exception as error:
            self._note_failure(job, error)
            if not isinstance(error, ThriftuneError | OSError):
                raise
        else:
            self._note_success(job, manifest, time.monotonic() - started)

    def _upload(self, job: _Save) -> Manifest:
        if job.written is not None:
            job.written.result()
        self._require_held()  # before anything of an older checkpoint of this step is removed
        with self._changed:
            left_out, self._left_out = self._left_out, []
        for step in left_out:
            uploading.report_problem(self._store, self._place.node, step, "it was skipped for a newer one.")
        uploading.upload_part(self._store, self._place, job.directory, job.step, job.content)
        self._require_held()  # an upload may have taken long
        finish = uploading.await_manifest if self._place.node else uploading.write_manifest
        return finish(self._store, self._place, job.step)

    def _note_success(self, job: _Save, manifest: Manifest, seconds: float) -> None:
        self.last_complete, self._in_a_row = job.step, 0
        old, self._kept = self._kept, job.directory
        if old is not None and old != job.directory:
            self._delete(old)
        if self._place.node == 0:
            logger.info(
                "Checkpoint of step %d is in the store (%.1f GiB, %.0f s).", job.step, manifest.size / _GIB, seconds
            )
            self._prune(job.step, job.best)

    def _note_failure(self, job: _Save, error: Exception) -> None:
        self.failures.append(f"step {job.step}: {type(error).__name__}: {error}")
        logger.warning("The checkpoint of step %d could not be saved, training goes on: %s", job.step, error)
        if not isinstance(error, IncompleteError):  # that is a failure of another node, which counts it itself
            self._in_a_row += 1
            self._last_error = error
        if not isinstance(error, LeaseError):  # the others' checkpoints are not this attempt's any more
            uploading.report_problem(self._store, self._place.node, job.step, f"it failed ({error})")
        if job.directory != self._kept:
            self._delete(job.directory)

    def _prune(self, step: int, best: Sequence[int]) -> None:
        try:
            self._require_held()
            for removed in prune(self._store, step, self._keep, best):
                logger.debug("Removed %s.", removed)
        except (ThriftuneError, OSError) as error:
            logger.warning("Older checkpoints could not be removed: %s", error)

    def _delete(self, directory: Path) -> None:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            logger.warning("%s could not be deleted and stays on the disk: %s", directory, error)

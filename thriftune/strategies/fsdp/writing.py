"""Writes the shards of every rank in the background, by torch's distributed checkpoint."""

from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from thriftune import distributed
from thriftune.disk import writing_to
from thriftune.errors import ThriftuneError, TransientError, in_a_line


class ShardWriter:
    """Writes checkpoints one after the other, while training goes on. Collective: every rank makes and calls its own.

    Ranks agree on each one through a process group that nothing else uses: collectives of a thread would come between
    those of the training.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=distributed.COLLECTIVE_TIMEOUT)
        self._written: Future[None] | None = None

    def wait(self) -> None:
        """Wait until what was started is done: a second copy would need as much host memory again."""
        if self._written is not None:
            wait([self._written])

    def start(self, tensors: dict[str, Any], folder: Path) -> Future[None]:
        """Copy tensors to the host, and begin to write the copies. The one before must be done.

        Args:
            tensors: Tensors that are divided over the ranks, by name; they may change when this returns.
            folder: Folder to write, on the disk of this rank's node.

        Returns:
            Done when the files of all ranks are whole; on every rank it holds the error if any rank failed.
        """
        written: Future[None] = Future()
        save: Any = state_dict_saver.async_save(
            tensors,
            # Nothing is copied ahead from a GPU, which would open a context on the first one in every process.
            storage_writer=_Writer(folder, per_thread_copy_ahead=0),
            async_stager=_HostCopies(),
            process_group=self._group,
        )
        save.add_done_callback(partial(_settle, written))
        self._written = written
        return written


class _Writer(FileSystemWriter):
    """Says which path of a disk is full, to all ranks."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        """Write what this rank holds."""
        with writing_to(Path(self.path), "writing a checkpoint"):
            return super().write_data(*args, **kwargs)


class _HostCopies(BlockingAsyncStager):
    """Copies tensors once; torch's own class copies those of a GPU twice."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copies of the tensors in host memory."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}


def _settle(written: Future[None], save: Future[Any]) -> None:
    """Pass on how a save ended, without its traceback, which holds the copies of all tensors."""
    error = save.exception()
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(_reason(error))


def _reason(error: BaseException) -> ThriftuneError:
    if not isinstance(error, CheckpointException):
        return TransientError(f"The ranks lost each other while they wrote a checkpoint: {in_a_line(error)}")
    rank, (cause, _) = next(iter(error.failures.items()))
    if isinstance(cause, ThriftuneError):
        return cause
    return TransientError(f"Rank {rank} could not write its part of a checkpoint: {in_a_line(cause)}")

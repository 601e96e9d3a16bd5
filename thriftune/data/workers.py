"""Converting batches in several processes, in order, with a bounded number of batches in progress."""

import itertools
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from thriftune.config import DataConfig
from thriftune.data.conversion import Batch, Converted, Converter
from thriftune.errors import DataError
from thriftune.models.tokenizer import load_tokenizer

# Other processes take about this long to start: work that is done by then needs none.
_SECONDS_ALONE = 4.0
_WAITING_PER_PROCESS = 2

_converter: Converter | None = None


@dataclass(frozen=True)
class Workers:
    """The number of processes, and what each of them needs.

    Attributes:
        tokenizer_dir: Directory with the tokenizer.
        trust_remote_code: Run tokenizer code that the model ships.
        processes: Number of processes; if None, one for each core that this process may use.
        labels: Names of the classes, for labelled rows.
    """

    tokenizer_dir: Path
    trust_remote_code: bool = False
    processes: int | None = None
    labels: tuple[str, ...] = ()

    def converter(self, config: DataConfig) -> Converter:
        """A converter for this process."""
        tokenizer = load_tokenizer(self.tokenizer_dir, trust_remote_code=self.trust_remote_code)
        return Converter(config, tokenizer, self.labels)


def convert_all(batches: Iterable[Batch], config: DataConfig, workers: Workers) -> Iterator[Converted]:
    """Convert batches.

    Args:
        batches: The batches, read far enough ahead to keep the processes busy.
        config: The data section of a run.
        workers: The processes to use; with little data, this process does it alone.

    Yields:
        The result of each batch, in order.

    Raises:
        DataError: A process was killed.
        RuntimeError: The processes could not start.
    """
    processes = workers.processes or len(os.sched_getaffinity(0))
    coming = iter(batches)
    converter, started = workers.converter(config), time.monotonic()
    for batch in coming:
        yield converter.convert(batch)
        if processes > 1 and time.monotonic() - started > _SECONDS_ALONE:
            break
    if (following := next(coming, None)) is None:
        return
    # Not forked: threads of Arrow, gRPC and the tokenizer may hold locks, on which a copy of this process would wait.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(workers, config)) as pool:
        waiting: deque[Future[Converted]] = deque()
        _require_started(pool)
        try:
            for batch in itertools.chain([following], coming):
                waiting.append(pool.submit(_convert, batch))
                if len(waiting) >= processes * (1 + _WAITING_PER_PROCESS):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError.single(
                "data.source",
                config.all_sources[0].source,
                "a process that tokenizes it was killed, most likely for lack of memory.",
                "Give the task more memory (THRIFTUNE_PREPARE_MEMORY), or split very long rows.",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _require_started(pool: ProcessPoolExecutor) -> None:
    """Raise if the processes could not start, as opposed to being killed while working."""
    try:
        pool.submit(_is_started).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "The processes that tokenize could not start; their own error is above. A script that prepares data must "
            "keep its code under `if __name__ == '__main__':`, because they import it."
        ) from error


def _is_started() -> bool:
    return _converter is not None


def _start(workers: Workers, config: DataConfig) -> None:
    global _converter  # noqa: PLW0603 - how a pool hands a process what all its tasks share
    _converter = workers.converter(config)


def _convert(batch: Batch) -> Converted:
    assert _converter is not None
    return _converter.convert(batch)

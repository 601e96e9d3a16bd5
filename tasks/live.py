"""The page of a training while it goes on: drawn of its lines by the process that waits for it, and shown as a deck.

Publishing a deck from a worker does nothing, so the parent of the workers does it; where the task trains in its own
process, that does. In a pod the page is also written to the training's prefix, with the lines: there it outlives the
pod, and the next attempt finds them. In a local run it is a file that a browser loads again and again.
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks import checkpoints, pages, settings
from thriftune import artifacts
from thriftune.checkpoints import layout
from thriftune.checkpoints.location import Writer
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError, in_a_line
from thriftune.redaction import redacted
from thriftune.stores.store import Store
from thriftune.training import live_report
from thriftune.training.attempts_made import devices_of, hours_of
from thriftune.training.lines import EARLIER, ENDS, LINES, Journal, Line, parsed, read, read_folder
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.live")

WHAT = "training"
# Seconds from one page to the next, at least; and at least so many times the seconds that making the last one took.
EVERY_SECONDS = 30.0
TIMES_ITS_OWN = 100.0
# Whether a training has ended is looked at more often, so that the page says it before this process ends too.
_LOOK_SECONDS = 0.5
# The last page is waited for, but no store that does not answer.
_LAST_SECONDS = 60.0
_TAIL_BYTES = 4096


@contextmanager
def watching(config: RunConfig, plan: TrainingPlan, training: str) -> Iterator[Path]:
    """Make and show the page of a training while a block runs it, here or in workers.

    Args:
        config: The run.
        plan: Its plan.
        training: What Flyte's cache knows the training by.

    Yields:
        The folder for its lines.
    """
    place = None if settings.is_local() else checkpoints.place_of(training)
    with _Watch(config.name, plan, settings.lines_path(config.name), place) as watch:
        yield watch.folder


def say_joined(folder: Path) -> None:
    """Say that the first process of a training is there, before it has fetched anything.

    Args:
        folder: The folder of the training's lines.
    """
    Journal(folder / LINES).write("alive")


def finish(config: RunConfig, plan: TrainingPlan, folder: Path, result: TrainingResult) -> None:
    """Say that a training has its result, and show its last page.

    Args:
        config: The run.
        plan: Its plan.
        folder: The folder of the training's lines.
        result: What was measured.
    """
    Journal(folder / LINES).write("finished", result.steps)  # first, so that nobody writes an older page over this one
    pages.show_training(config.name, plan, result, read_folder(folder), ranks_in(folder))


def with_hours(plan: TrainingPlan, folder: Path, result: TrainingResult) -> TrainingResult:
    """A result with the GPU-hours of all attempts at its training until now.

    Args:
        plan: The plan.
        folder: The folder of the training's lines.
        result: What was measured.
    """
    lines = [*read_folder(folder), Line(time.time(), "finished", result.steps)]
    return replace(result, gpu_hours=hours_of(plan, lines))


def ranks_in(folder: Path) -> list[Line]:
    """What other ranks of this node say of their memory.

    Args:
        folder: The folder of the training's lines.
    """
    return [line for file in sorted(folder.glob("rank-*.jsonl")) for line in read(file)]


class _Watch:
    """Makes the page of a training again and again, in a thread, until its block ends.

    Args:
        run_name: Name of the run.
        plan: Its plan.
        folder: The folder of its lines.
        place: Prefix of the training in the store, and who writes there; None in a local run.
    """

    def __init__(self, run_name: str, plan: TrainingPlan, folder: Path, place: tuple[Store, Writer] | None) -> None:
        self.folder = folder
        self._run_name, self._plan = run_name, plan
        self._store = place[0].without_retries() if place else None
        self._lines_name = layout.lines_name(place[1].owner, place[1].attempt) if place else ""
        self._journal = Journal(folder / LINES)
        self._stop = threading.Event()
        # Flyte keeps in a context variable what a deck belongs to.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="page of the training", daemon=True)
        self._here = plan.nodes == 1
        self._last_end = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        self._journal.write("began", devices=devices_of(self._plan))
        where = f"{self._store.prefix}/{layout.PAGE}" if self._store else self.folder / layout.PAGE
        logger.info("The page of the training, renewed every %.0f s: %s", EVERY_SECONDS, where)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._is_here() and self._end() is None:
            self._journal.write("failed", 0, in_a_line(error))
        self._stop.set()
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        if self._store:
            self._trying("the lines of earlier attempts could not be read", self._fetch_earlier)
        is_first, is_last = True, False
        while not is_last:
            is_last, began = self._stop.is_set(), time.perf_counter()
            if is_first or self._is_here():
                self._renew(is_last=is_last)
            is_first = False
            self._wait(max(EVERY_SECONDS, TIMES_ITS_OWN * (time.perf_counter() - began)))

    def _wait(self, seconds: float) -> None:
        """Wait until the next page is due: after some time, when an attempt ended, or at the end of the block."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stop.wait(_LOOK_SECONDS):
            if self._is_here() and self._has_ended_anew():
                return

    def _renew(self, *, is_last: bool) -> None:
        """Make the page, and put it where people look for it."""
        now = time.time()
        lines = read_folder(self.folder)
        has_finished = bool(lines) and lines[-1].kind == "finished"
        if lines and self._is_here() and not is_last and now - lines[-1].at > EVERY_SECONDS:
            self._journal.write("alive")  # a process that is killed leaves no last line
        is_local = self._store is None
        end = self._end()
        goes_on = not is_last and (end is None or end.kind not in ("interrupted", "finished"))
        refresh = max(1, int(EVERY_SECONDS)) if is_local and goes_on else 0
        page = redacted(
            live_report.page_of(
                self._run_name, self._plan, lines, now, ranks=ranks_in(self.folder), refresh_seconds=refresh
            )
        )
        if is_local:
            if not has_finished:  # that page was written by the process that knows the result
                self._trying("the newest could not be written", lambda: _write(self.folder / layout.PAGE, page))
            return
        if not has_finished:
            pages.publish_deck(WHAT.capitalize(), page)
        self._trying("the newest could not be written", lambda: self._upload(page))

    def _upload(self, page: str) -> None:
        """Write the page to the training's prefix, and the lines that it was made of."""
        assert self._store is not None
        self._store.put_bytes(layout.PAGE, page.encode())
        if self._is_here():
            self._store.put_bytes(self._lines_name, (self.folder / LINES).read_bytes())

    def _fetch_earlier(self) -> None:
        """Get the lines of the attempts before this one, in the order in which they began."""
        assert self._store is not None
        others = [name for name in self._store.names(layout.LINES) if name != self._lines_name]
        contents = [self._store.get_bytes(name) or b"" for name in others]
        attempts = sorted((lines for content in contents if (lines := parsed(content))), key=lambda lines: lines[0].at)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line.as_json()}\n" for lines in attempts for line in lines)
        artifacts.write_text(self.folder / EARLIER, text)

    def _trying(self, what: str, work: Callable[[], None]) -> None:
        """Do something that may fail without ending the run; say so once."""
        try:
            work()
        except (ThriftuneError, OSError) as error:
            if what not in self._said:
                self._said.add(what)
                logger.warning("Of the page of the training %s: %s", what, in_a_line(error))

    def _is_here(self) -> bool:
        """Whether the lines are written on this node: of several nodes on that of rank 0, once its process is there."""
        self._here = self._here or any(line.kind != "began" for line in read(self.folder / LINES))
        return self._here

    def _end(self) -> Line | None:
        """The line that says how the newest attempt ended; None if it goes on."""
        newest = next((line for line in reversed(_tail(self.folder / LINES)) if line.kind != "alive"), None)
        return newest if newest and newest.kind in ENDS else None

    def _has_ended_anew(self) -> bool:
        """Whether an attempt ended since this was last asked."""
        end = self._end()
        is_new = end is not None and end.at > self._last_end
        self._last_end = end.at if end is not None else self._last_end
        return is_new


def _tail(file: Path) -> list[Line]:
    """The newest lines of a file."""
    try:
        with open(file, "rb") as lines:
            lines.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            return parsed(lines.read())
    except OSError:
        return []


def _write(file: Path, page: str) -> None:
    """Write a page, of which a browser sees the old one or the new one, and nothing in between."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    artifacts.write_text(partial, page)
    partial.replace(file)

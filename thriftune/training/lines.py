"""The lines that a training leaves while it goes on: JSON, one object a line, appended by whoever has something to say.

The page of the training is drawn of them at any moment, and GPU-hours are counted from them. They begin with the task,
not with the first step, and hold all attempts at a training. Nothing that goes wrong with them ends a run.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from thriftune import distributed
from thriftune.errors import PreemptedError, StartAgainError, UserError, in_a_line
from thriftune.redaction import redacted

logger = logging.getLogger(__name__)

# A task began; a process loads; the first step is next; a step, or several, were done; what comes in between; the ends.
Kind = Literal[
    "began", "loading", "training", "step", "validation", "saved", "skipped", "alive",
    "interrupted", "again", "stopped", "failed", "finished",
]  # fmt: skip
ENDS: tuple[Kind, ...] = ("interrupted", "again", "stopped", "failed", "finished")
_KINDS = frozenset(get_args(Kind))
# In the folder of a training's lines: those of this attempt at the task, and those of attempts before it.
LINES, EARLIER = "lines.jsonl", "earlier.jsonl"

_LONGEST_ERROR = 400


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        at: When, in seconds since 1970.
        kind: What happened.
        step: Optimizer steps done.
        values: Numbers by name, with the unit in the name; not a number where one was measured that is none.
        text: What a person should know.
    """

    at: float
    kind: Kind
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    text: str = ""

    def as_json(self) -> str:
        """The line, without its end and without secrets."""
        values = {name: value if math.isfinite(value) else None for name, value in self.values.items()}
        content: dict[str, Any] = {"at": round(self.at, 3), "kind": self.kind, "step": self.step, "values": values}
        return json.dumps(content | ({"text": redacted(self.text)} if self.text else {}))


class Journal:
    """Appends lines to a file, from this process and others. If that fails, the log says so once.

    Args:
        file: The file; None to write nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._has_failed = False

    def write(self, kind: Kind, step: int = 0, text: str = "", /, **values: float | None) -> None:
        """Append a line.

        Args:
            kind: What happened.
            step: Optimizer steps done.
            text: What a person should know.
            **values: Numbers; those that are None are left out.
        """
        if self.file is None or self._has_failed:
            return
        known = {name: float(value) for name, value in values.items() if value is not None}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a", encoding="utf-8") as lines:  # one write: processes do not mix their lines
                lines.write(Line(time.time(), kind, step, known, text).as_json() + "\n")
        except OSError as error:
            self._has_failed = True
            logger.warning("The page of the training is not renewed, as %s cannot be written: %s", self.file, error)


def journal_in(folder: Path | None) -> Journal:
    """The journal of this process: of rank 0 the lines that all share, of others their memory.

    Args:
        folder: The folder of the training's lines; None to write nothing.
    """
    rank = distributed.current_rank()
    return Journal(folder and folder / (LINES if rank.is_main else f"rank-{rank.index}.jsonl"))


@contextmanager
def told(journal: Journal) -> Iterator[None]:
    """Write how an attempt ended, if it did so with an error.

    Args:
        journal: Where to.
    """
    try:
        yield
    except BaseException as error:
        journal.write(_kind_of(error), 0, in_a_line(error, _LONGEST_ERROR))
        raise


def _kind_of(error: BaseException) -> Kind:
    if isinstance(error, PreemptedError | KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, StartAgainError):
        return "again"
    return "stopped" if isinstance(error, UserError) else "failed"


def read(file: Path) -> list[Line]:
    """The lines of a file; none if it is not there. What is no line, as the half of one, is left out.

    Args:
        file: The file.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return []
    return parsed(content)


def parsed(content: bytes) -> list[Line]:
    """The lines in the content of a file.

    Args:
        content: What the file holds.
    """
    return [line for raw in content.splitlines() if (line := _line(raw)) is not None]


def read_folder(folder: Path) -> list[Line]:
    """All lines of a training, of earlier attempts too, since it was last finished.

    Args:
        folder: The folder of its lines.
    """
    lines = [*read(folder / EARLIER), *read(folder / LINES)]
    finished = [number for number, line in enumerate(lines[:-1], start=1) if line.kind == "finished"]
    # What follows right after the end, as from a process that still looked at it, is no new training.
    started = [number for number in finished if any(line.kind == "began" for line in lines[number:])]
    return lines[started[-1] if started else 0 :]


def by_step(lines: Iterable[Line], name: str) -> list[tuple[int, float]]:
    """Step and value of each line of steps that has one.

    Args:
        lines: The lines, in order.
        name: Name of the value.
    """
    return [(line.step, line.values[name]) for line in lines if line.kind == "step" and name in line.values]


def last_value(lines: Sequence[Line], name: str) -> float | None:
    """The newest value of a name; None if there is none.

    Args:
        lines: The lines, in order.
        name: Name of the value.
    """
    return next((line.values[name] for line in reversed(lines) if name in line.values), None)


def _line(raw: bytes) -> Line | None:
    try:
        content = json.loads(raw)
        values = {str(name): math.nan if value is None else float(value) for name, value in content["values"].items()}
        line = Line(float(content["at"]), content["kind"], int(content["step"]), values, str(content.get("text", "")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return line if line.kind in _KINDS else None

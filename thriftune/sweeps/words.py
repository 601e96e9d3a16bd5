"""What the process of a trial and the one that started it tell each other: small files in a folder of the trial.

Files, and not a pipe: what was said stays when a process is killed, and nobody waits for a reader that is gone.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune import artifacts
from thriftune.sweeps import outcome_json
from thriftune.sweeps.outcomes import Outcome
from thriftune.training.result import Validation

# What a process said last; the validations of its trial so far; how many of them it was answered about, and what.
_SAID, _VALIDATED, _ANSWERED = "said.json", "validated.json", "answered.json"
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Said:
    """The last words of a trial's process.

    Attributes:
        outcome: What came of the trial; None if it has to start again.
        again: Why it has to.
    """

    outcome: Outcome | None = None
    again: str = ""


class Words:
    """The folder of a trial, which both sides have.

    Args:
        folder: Its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, said: Said) -> None:
        """Say what came of the trial, at the end of its process.

        Args:
            said: What to say.
        """
        outcome = outcome_json.to_json(said.outcome) if said.outcome else None
        self._write(_SAID, {"outcome": outcome, "again": said.again})

    def heard(self) -> Said | None:
        """What the trial's process said at its end; None if it said nothing."""
        content = self._read(_SAID)
        if content is None:
            return None
        outcome = outcome_json.from_json(content["outcome"]) if content["outcome"] else None
        return Said(outcome, content["again"])

    def forget(self) -> None:
        """Forget what a process said that is to start again."""
        (self.folder / _SAID).unlink(missing_ok=True)

    def tell(self, validations: Sequence[Validation]) -> None:
        """Tell of the validations so far.

        Args:
            validations: Those after the first step, in their order.
        """
        self._write(_VALIDATED, [[validation.step, validation.loss] for validation in validations])

    def validations(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Steps and held-out losses of the validations so far."""
        told = self._read(_VALIDATED) or []
        return tuple(int(step) for step, _ in told), tuple(float(loss) for _, loss in told)

    def answer(self, count: int, *, goes_on: bool) -> None:
        """Answer whether the trial goes on.

        Args:
            count: Number of validations that this is the answer to.
            goes_on: Whether it does.
        """
        self._write(_ANSWERED, [count, goes_on])

    def answered(self, count: int, seconds: float) -> bool:
        """Wait for the answer to a number of validations.

        Args:
            count: That number.
            seconds: Longest wait.

        Returns:
            Whether the trial goes on: also where no answer came in time.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            content = self._read(_ANSWERED)
            if content is not None and content[0] == count:
                return bool(content[1])
            time.sleep(_LOOK_SECONDS)
        return True

    def _write(self, name: str, content: Any) -> None:
        """Write a file, of which the other side sees the old one or the new one, and nothing in between."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        artifacts.write_text(partial, json.dumps(content))
        partial.replace(self.folder / name)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None

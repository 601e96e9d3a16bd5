"""What must be true of a run that was disturbed, beside one that was not."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.conftest import INTERVAL, Undisturbed
from faults.running import Outcome, Run

# Seconds of a training that took no fault, or that cannot be told.
_NONE = 0.0


def steps_lost(before: Outcome, after: Outcome) -> int:
    """Steps that an attempt did and that the next one has to do again."""
    return before.last_step - after.begins[0]


def seconds_to_resume(outcome: Outcome) -> float:
    """Seconds from the start of an attempt to its first step: model and checkpoint are loaded then."""
    return outcome.begun_at[0] - outcome.started_at


def require_same_training(undisturbed: Undisturbed, run: Run, outcomes: Sequence[Outcome]) -> None:
    """Losses after each resume, held-out losses, and every bit of the weights are those of a run nobody disturbed."""
    for outcome in outcomes:
        expected = {step: undisturbed.outcome.losses[step] for step in outcome.losses}
        assert outcome.losses == expected, outcome.begins
    assert outcomes[-1].last_step == undisturbed.outcome.last_step
    assert run.weights == undisturbed.weights
    assert run.held_out == undisturbed.run.held_out
    assert run.claims_to_be_finished == [run.output]


def note(
    record: Callable[..., None],
    case: str,
    method: str,
    outcomes: Sequence[Outcome],
    *,
    interval: int = INTERVAL,
    limit: int | None = None,
    result: str = "same losses, same weights",
    **changes: Any,
) -> None:
    """Note what a run of several attempts cost; and hold it to a limit: the interval between two checkpoints."""
    pairs = list(itertools.pairwise(outcomes))
    lost = max((steps_lost(before, after) for before, after in pairs), default=0)
    seconds = max((seconds_to_resume(after) for _, after in pairs), default=_NONE)
    values = {"faults": len(pairs), "steps_lost": lost, "seconds": seconds, **changes}
    assert values["steps_lost"] <= (interval if limit is None else limit), [(o.begins, o.last_step) for o in outcomes]
    record(case, method, interval=interval, **values, result=result)


def stored(checkpoint: Path, pattern: str) -> Path:
    """A file of a checkpoint in a store that is a directory."""
    found = [path for path in checkpoint.rglob(pattern) if "parts" not in path.parts]
    assert len(found) == 1, found
    return found[0]


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))

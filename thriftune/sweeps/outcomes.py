"""What came of the trials of a sweep."""

from dataclasses import dataclass
from typing import Literal

from thriftune.training.result import TrainingResult

Status = Literal["trained", "stopped", "failed", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        number: Number of the trial, from 0.
        status: trained: it has a result. stopped: ended early, with a checkpoint. failed: it ended with an error.
            unknown: its pod was lost, and nothing is known of it.
        model: URL or path of the model or adapter; empty unless it trained.
        training: What was measured; None unless it trained.
        steps: Validations of a trial that did not train to its end: optimizer steps done.
        losses: The held-out loss at each of them, in nats.
        error: Why it failed, in one line; empty otherwise.
        seconds: Wall-clock seconds that it had its devices.
        is_served: Whether an earlier run had trained it.
    """

    number: int
    status: Status
    model: str = ""
    training: TrainingResult | None = None
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    error: str = ""
    seconds: float = 0.0
    is_served: bool = False

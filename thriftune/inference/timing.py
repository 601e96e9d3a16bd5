"""The time of a step as it was planned, and as it was measured."""

from dataclasses import dataclass
from typing import Self

from thriftune.planning.time.report import duration
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan


@dataclass(frozen=True)
class Timing:
    """Seconds of one optimizer step, planned and measured.

    Attributes:
        measured: Mean of the last attempt's steps but its first one, without validation and checkpoints.
        planned: What the plan said.
        low: The least that the plan thought likely.
        high: The most that it thought likely.
        leans_on: Where the plan had this from.
    """

    measured: float
    planned: float
    low: float
    high: float
    leans_on: str

    @classmethod
    def of(cls, plan: TrainingPlan, training: TrainingResult) -> Self | None:
        """The time of a training's steps.

        Args:
            plan: Its plan.
            training: What was measured.

        Returns:
            The times; None where none was planned, or no step was timed.
        """
        pace, time = training.pace, plan.time
        if time is None or pace is None or not pace.seconds_per_step:
            return None
        seconds, (low, high) = time.step.seconds, time.error
        return cls(pace.seconds_per_step, seconds, low * seconds, high * seconds, time.leans_on)

    @property
    def note(self) -> str:
        """What was planned, as text."""
        return f"planned {duration(self.planned)} ({duration(self.low)} to {duration(self.high)}), {self.leans_on}"

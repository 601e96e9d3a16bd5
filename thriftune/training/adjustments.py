"""What a training changed of itself to go on: a smaller micro batch, batches that it leaves out."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter

from thriftune.errors import DivergedError, UserError
from thriftune.training.guards.oom import MAX_HALVINGS, Halvings, halved
from thriftune.training_plan import TrainingPlan

# Batches in one run that may be left out: a run that needs more has another problem than a bad batch.
MOST_SKIPPED = 5


@dataclass(frozen=True)
class Adjustments:
    """Changes to a run while it trains.

    Attributes:
        micro_batch: Rows at a time, in place of the plan's; None: as planned.
        accumulation: Passes of a step, that the global batch stays.
        halvings: How often memory ran out.
        skipped_steps: Optimizer steps whose batch is left out, because the loss diverged there.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    micro_batch: int | None = None
    accumulation: int | None = None
    halvings: int = 0
    skipped_steps: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what `as_json` made.

        Raises:
            ValueError: It is of something else, or of a version that changes more.
        """
        return TypeAdapter(cls).validate_python(content)

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def applied_to(self, plan: TrainingPlan) -> TrainingPlan:
        """The plan with the batch as it is now."""
        if self.micro_batch is None or self.accumulation is None:
            return plan
        return replace(plan, micro_batch=self.micro_batch, accumulation=self.accumulation)

    def record(self, planned: int) -> Halvings:
        """For the metrics: how often the micro batch was made smaller, and from what to what.

        Args:
            planned: The plan's micro batch.
        """
        return Halvings(self.halvings, planned, self.micro_batch or planned)

    def after_out_of_memory(self, plan: TrainingPlan) -> Self:
        """Fewer rows at a time, as many an optimizer step.

        Args:
            plan: The plan as it was applied.

        Raises:
            UserError: It was tried twice, or a single row does not fit.
        """
        if self.halvings >= MAX_HALVINGS:
            raise UserError.single(
                "training.micro_batch",
                plan.micro_batch,
                f"does not fit either, after it was made smaller {self.halvings} times.",
                "Lower data.max_length, or ask for GPUs with more memory; and report how far off the plan was.",
            )
        micro_batch, accumulation = halved(plan.micro_batch, plan.accumulation)
        return replace(self, micro_batch=micro_batch, accumulation=accumulation, halvings=self.halvings + 1)

    def after_divergence(self, step: int, why: str) -> Self:
        """Leave out the batch that is to blame.

        Args:
            step: Where the loss began to diverge.
            why: As a sentence.

        Raises:
            DivergedError: Too many batches were left out.
        """
        if len(self.skipped_steps) >= MOST_SKIPPED:
            left_out = ", ".join(map(str, self.skipped_steps))
            message = f"{why} The batches of steps {left_out} were left out before."
            raise DivergedError.single(
                "training.on_divergence", "rollback", message, "Lower the learning rate, or look at the rows."
            )
        return replace(self, skipped_steps=(*self.skipped_steps, self._to_blame(step)))

    def _to_blame(self, step: int) -> int:
        """The step whose batch is left out, where the loss diverges at this one.

        Its own; but a loss is that of the weights as the batch before left them. So if the batches before it are left
        out already, and it did not help, the one before these is tried next; and then its own.
        """
        skipped = set(self.skipped_steps)
        before = step
        while before in skipped or before - 1 in skipped:
            before -= 1
        went_back_already = step not in skipped and step - before > 2
        return step if went_back_already or before < 1 else before

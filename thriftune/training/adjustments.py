"""What a training changed about itself so that it can continue: a smaller micro batch, skipped batches."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter

from thriftune.errors import DivergedError, UserError
from thriftune.training.guards.oom import MAX_HALVINGS, Halvings, halved
from thriftune.training_plan import TrainingPlan

# Batches that one run may skip: a run that needs more has another problem than a bad batch.
MOST_SKIPPED = 5


@dataclass(frozen=True)
class Adjustments:
    """Changes that a training made to its own plan.

    Attributes:
        micro_batch: Rows at a time, in place of the plan's; None to use the plan's.
        accumulation: Forward and backward passes per optimizer step, so that the global batch stays the same.
        halvings: Number of times that memory ran out.
        skipped_steps: Optimizer steps whose batch is skipped, because the loss diverged there.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    micro_batch: int | None = None
    accumulation: int | None = None
    halvings: int = 0
    skipped_steps: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what `as_json` made.

        Args:
            content: The parsed JSON.

        Raises:
            ValueError: It is something else, or was written by a version that changes more.
        """
        return TypeAdapter(cls).validate_python(content)

    def as_json(self) -> dict[str, Any]:
        """The changes as values for JSON."""
        return asdict(self)

    def applied_to(self, plan: TrainingPlan) -> TrainingPlan:
        """The plan with the present micro batch and accumulation; validations become smaller with it."""
        if self.micro_batch is None or self.accumulation is None:
            return plan
        rows = max(1, plan.validation_batch // 2**self.halvings)
        return replace(plan, micro_batch=self.micro_batch, accumulation=self.accumulation, validation_batch=rows)

    def record(self, planned: int) -> Halvings:
        """The record for the metrics: how often the micro batch was made smaller, from what, and to what.

        Args:
            planned: The plan's micro batch, in rows.
        """
        return Halvings(self.halvings, planned, self.micro_batch or planned)

    def after_out_of_memory(self, plan: TrainingPlan) -> Self:
        """Adjustments with fewer rows at a time, and as many rows per optimizer step as before.

        Args:
            plan: The plan with the batch that did not fit.

        Raises:
            UserError: It was made smaller twice already, or a single row does not fit.
        """
        if self.halvings >= MAX_HALVINGS:
            raise UserError.single(
                "training.micro_batch",
                plan.micro_batch,
                f"does not fit, although it was made smaller {self.halvings} times.",
                "Lower data.max_length, or ask for GPUs with more memory; and report how wrong the plan was.",
            )
        micro_batch, accumulation = halved(plan.micro_batch, plan.accumulation)
        return replace(self, micro_batch=micro_batch, accumulation=accumulation, halvings=self.halvings + 1)

    def after_divergence(self, step: int, why: str) -> Self:
        """Adjustments that skip the batch that made the loss diverge.

        Args:
            step: Step at which the loss began to diverge.
            why: What happened, as a sentence.

        Raises:
            DivergedError: Too many batches were skipped.
        """
        if len(self.skipped_steps) >= MOST_SKIPPED:
            left_out = ", ".join(map(str, self.skipped_steps))
            message = f"{why} The batches of steps {left_out} were skipped before."
            raise DivergedError.single(
                "training.on_divergence", "rollback", message, "Lower the learning rate, or look at the rows."
            )
        return replace(self, skipped_steps=(*self.skipped_steps, self._to_blame(step)))

    def _to_blame(self, step: int) -> int:
        """The step whose batch is skipped when the loss diverges at this step.

        Usually its own. But a loss also depends on the weights that the batch before left behind. So if batches just
        before it are skipped already, and that did not help, the one before those is tried next, and then its own.
        """
        skipped = set(self.skipped_steps)
        before = step
        while before in skipped or before - 1 in skipped:
            before -= 1
        went_back_already = step not in skipped and step - before > 2
        return step if went_back_already or before < 1 else before

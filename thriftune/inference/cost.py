"""What the nodes of a training cost, as far as it was measured."""

from dataclasses import dataclass
from typing import Self

from thriftune.planning.report import machines
from thriftune.training.charts import duration
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan

_SECONDS_PER_HOUR = 3600
_LEAST_SHOWN = 0.005  # less than that would be shown as 0.00
NOT_COUNTED = (
    "Not counted: nodes while they start, downloads and uploads, attempts that were lost, the tasks on CPUs, "
    "measuring the result again, answering prompts with a training that Flyte's cache served, and storage."
)
_ON_DEMAND = "The shipped catalogue has on-demand prices; spot nodes cost less."


@dataclass(frozen=True)
class Cost:
    """What the nodes of a training cost.

    Attributes:
        machines: The nodes.
        seconds: Time of the training that is counted.
        price_per_hour: Price of all nodes, in `currency`; 0 where they cost nothing.
        currency: Currency of the price.
        prices_as_of: Date and region of the prices; empty if not known.
        is_of_another_run: Whether another run trained, so that this one paid nothing for it.
        has_resumed: Whether the training went on from a checkpoint of an earlier attempt.
    """

    machines: str
    seconds: float
    price_per_hour: float
    currency: str
    prices_as_of: str
    is_of_another_run: bool = False
    has_resumed: bool = False

    @classmethod
    def of(cls, plan: TrainingPlan, training: TrainingResult, *, is_of_another_run: bool) -> Self:
        """The cost of a training on the nodes of its plan.

        The last attempt is measured from loading the model to the last step; of those before it only the steps are
        known, with its own.

        Args:
            plan: The plan, with the price.
            training: What was measured.
            is_of_another_run: Whether another run trained.
        """
        last_attempt = max(training.resources.seconds, default=0.0)
        seconds, has_resumed = max(training.seconds, last_attempt), training.resumed_at > 0
        price = (plan.price_per_hour, plan.currency, plan.prices_as_of)
        return cls(machines(plan), seconds, *price, is_of_another_run, has_resumed)

    @property
    def amount(self) -> float:
        """The price of the time that is counted."""
        return self.price_per_hour * self.seconds / _SECONDS_PER_HOUR

    @property
    def short(self) -> str:
        """The amount, as text."""
        if not self.price_per_hour:
            return "nothing"
        if self.is_of_another_run:
            return "nothing for the training"
        return f"{'<0.01' if self.amount < _LEAST_SHOWN else f'{self.amount:,.2f}'} {self.currency}"

    @property
    def note(self) -> str:
        """What the amount is, in a few words."""
        if self.is_of_another_run:
            return "another run trained"
        return "of the training's nodes, as far as measured" if self.price_per_hour else "a machine of your own"

    @property
    def why(self) -> str:
        """What the amount is made of, as sentences: at which price, what is counted, and what is not."""
        if not self.price_per_hour:
            return f"{duration(self.seconds)} on {self.machines}, which costs nothing: it is your own."
        day = f" of {self.prices_as_of}" if self.prices_as_of else ""
        counted = "the training, from loading the model to the last step"
        if self.has_resumed:
            counted = "the last attempt from loading the model on, or the steps of all attempts if they took longer"
        price = f"{self.price_per_hour:,.2f} {self.currency} per hour, the catalogue's price{day}. {_ON_DEMAND}"
        taken = f"{duration(self.seconds)} on {self.machines} at {price} Counted: {counted}. {NOT_COUNTED}"
        if not self.is_of_another_run:
            return taken
        other = f"{self.amount:,.2f} {self.currency}"
        return f"Another run trained this, and Flyte's cache served it. There it cost {other}: {taken}"

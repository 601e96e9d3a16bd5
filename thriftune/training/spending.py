"""What a training has cost so far, over all of its attempts, and what ends one that may cost no more."""

import logging
import time
from collections.abc import Callable

from thriftune import distributed
from thriftune.checkpoints.spent import SpentTime
from thriftune.config import RunConfig
from thriftune.errors import BudgetError, ThriftuneError, in_a_line
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

_HOUR = 3600.0
# Seconds between two notes of the time that an attempt took: a killed one has taken so much longer at most.
_NOTED_EVERY = 120.0


class Spending:
    """The cost of a training, as far as its processes know it: from when they begin to fetch the model.

    Args:
        config: The run.
        plan: Its plan.
        spent: The time of all attempts, noted beside the checkpoints.
        seconds_before: Seconds that this process took before this was made, to fetch model and rows.
        clock: Gives seconds; another one in tests.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: TrainingPlan,
        spent: SpentTime,
        seconds_before: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget, self._currency = config.plan.budget, plan.currency
        self._plan, self._price, self._spent, self._clock = plan, plan.price_per_hour, spent, clock
        self._began = self._noted = clock() - seconds_before
        self._earlier = 0.0
        self._ended_at: int | None = None
        self._is_main, self._is_unsaid = distributed.current_rank().is_main, True

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget that the training can exceed."""
        return self._budget is not None and self._price > 0

    @property
    def seconds(self) -> float:
        """Seconds of all attempts so far, with those whose steps were lost."""
        return self._earlier + self._clock() - self._began

    @property
    def cost(self) -> float:
        """What that cost, in the plan's currency."""
        return self._price * self.seconds / _HOUR

    def begin(self) -> None:
        """Learn what earlier attempts took, and end where that is all that may be spent. Collective.

        Where all steps are done, and an attempt was lost while it wrote the result, nothing more is trained, and the
        result is made.

        Raises:
            BudgetError: It is.
            TransientError: The store does not answer.
        """
        if self._budget is not None and not self.is_limited and self._is_main:
            logger.info("plan.budget does not limit this run: its machine has no price")
        if not self._price:
            return

        def look() -> float:
            self._earlier = self._spent.seconds()
            if self.would_exceed(0.0) and not self._spent.has_all_steps():
                raise self.error(self._spent.newest_step(), 0)
            return self._earlier

        self._earlier = distributed.from_main(look)
        self.note(at_once=True)  # the time until here, should loading be the end of this attempt

    def end(self, step: int) -> None:
        """Note that all steps are done.

        Args:
            step: The last one.
        """
        self._ended_at = step
        self.note(at_once=True)

    def saved_step(self) -> int:
        """The step of the newest checkpoint in the store; 0 if there is none. Collective.

        Raises:
            TransientError: The store does not answer.
        """
        return distributed.from_main(self._spent.newest_step)

    def would_exceed(self, seconds: float) -> bool:
        """Whether so much longer would cost more than may be spent.

        Args:
            seconds: Seconds from now.
        """
        return self.is_limited and self.cost + self._price * seconds / _HOUR >= (self._budget or 0.0)

    def note(self, *, at_once: bool = False) -> None:
        """Note the time so far, in one process and from time to time; a failure is said once, and nothing more.

        Args:
            at_once: Whether to do so however short ago the last time was.
        """
        if not self._price or not self._is_main or not (at_once or self._clock() - self._noted >= _NOTED_EVERY):
            return
        self._noted = self._clock()
        try:
            self._spent.note(self._clock() - self._began, self._ended_at)
        except ThriftuneError as error:
            if self._is_unsaid:
                logger.warning("The time of this attempt is not noted, and not counted later: %s", in_a_line(error))
            self._is_unsaid = False

    def error(self, step: int, steps: int, step_seconds: float = 0.0) -> BudgetError:
        """The error that ends a training which is about to exceed its budget.

        Args:
            step: Steps that are saved.
            steps: Steps of the whole run; 0 if that is not known.
            step_seconds: Seconds of a step; 0 if that is not known.
        """
        what = f"{self.cost:,.2f} {self._currency} in {self.seconds / _HOUR:,.2f} hours of all attempts"
        done = f"{step:,} of {steps:,} steps are" if steps else f"{step:,} steps are"
        message = (
            f"the training has cost {what}, at {self._price:,.2f} an hour, and going on would exceed this. It stops; "
            f"{done} done and saved."
        )
        rest = self._price * step_seconds * (steps - step) / _HOUR
        needed = f" The steps that are left need about {rest:,.2f} more." if rest else ""
        remedy = (
            f"To go on from there, raise plan.budget and start the same run file again.{needed} It is planned again, "
            "with what others ran meanwhile, and on other machines it may begin at step 0. To keep these, write into "
            f"it: {', '.join(f'{key}: {value}' for key, value in _kept(self._plan).items())}."
        )
        return BudgetError.single("plan.budget", f"{self._budget:g}", message, remedy)


def _kept(plan: TrainingPlan) -> dict[str, object]:
    """Keys and values of a run file with which the run is planned as it was, whatever else fits."""
    return {
        "hardware.instance": plan.instance,
        "hardware.nodes": plan.nodes,
        "hardware.devices_per_node": plan.devices_per_node,
        "strategy": plan.strategy,
        **STRATEGIES[plan.strategy].written(plan.settings),
        "training.micro_batch": plan.micro_batch,
    }

"""What a sweep is expected to take, what it took, and whether that is within its budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from thriftune.config.sweep import BudgetConfig
from thriftune.errors import ConfigError, Problem
from thriftune.planning.packing import PlannedPack
from thriftune.planning.time.report import hours as hours_text
from thriftune.sweeps.rounds import PlannedRound
from thriftune.training_plan import TrainingPlan


@dataclass(frozen=True)
class Expected:
    """What trials are expected to take.

    Attributes:
        trials: Number of trials.
        hours: Hours from the first to the last.
        cost: Price of their nodes.
        rounds: Rounds of them, one after the other, which take equally long.
    """

    trials: int
    hours: float
    cost: float
    rounds: int = 1

    def times(self, trials: int, rounds: int) -> "Expected":
        """The same for another number of such trials.

        Args:
            trials: Number of trials.
            rounds: Rounds like this one, one after the other, in which they are trained.
        """
        return Expected(trials, self.hours * rounds, self.cost * trials / self.trials, rounds)


def expected(planned: PlannedRound, parallel: int | None) -> Expected | None:
    """What a round is expected to take; None where the time of a trial is not known.

    Args:
        planned: The round, with at least one trial.
        parallel: Most trials at a time; None for all.
    """
    plans = {trial.number: trial.plan for trial in planned.trials}
    if any(plan.time is None for plan in plans.values()):
        return None
    packs = [(pack.node.price_per_hour, _hours_of(pack, plans)) for pack in planned.packs]
    alone = [(trial.plan.price_per_hour, _hours(trial.plan)) for trial in planned.alone]
    waves = math.ceil(len(alone) / min(parallel or len(alone), len(alone))) if alone else 0
    longest = max([hours for _, hours in packs], default=0.0)
    longest = max(longest, waves * max([hours for _, hours in alone], default=0.0))
    return Expected(len(plans), longest, sum(price * hours for price, hours in (*packs, *alone)))


def require_within(budget: BudgetConfig | None, found: Expected | None, currency: str) -> None:
    """Refuse a sweep that is expected to take more than it may, before anything is started.

    Args:
        budget: What it may take; None for no limit.
        found: What it is expected to take; None where that is not known.
        currency: Currency of the price.

    Raises:
        ConfigError: It is expected to take more, or nothing can be said of it.
    """
    if budget is None:
        return
    if found is None:
        message = "cannot be kept to: the time of a trial on its machines is not known."
        remedy = "Leave the budget out, use a device whose speed the catalogue has, or run workflows/plan.py calibrate."
        raise ConfigError.of("plan-does-not-fit", [Problem("sweep.budget", "given", message, remedy)])
    problems = []
    if budget.cost is not None and found.cost > budget.cost:
        message = f"{found.trials} trials are expected to cost {found.cost:,.2f} {currency}."
        fewer = _remedy(math.floor(found.trials * budget.cost / found.cost))
        problems.append(Problem("sweep.budget.cost", f"{budget.cost:g}", message, fewer))
    if budget.hours is not None and found.hours > budget.hours:
        message = f"{found.trials} trials are expected to take {hours_text(found.hours)}."
        rounds = math.floor(budget.hours * found.rounds / found.hours)  # those of one round train at the same time
        fewer = _remedy(math.floor(found.trials * rounds / found.rounds))
        problems.append(Problem("sweep.budget.hours", f"{budget.hours:g}", message, fewer))
    if problems:
        raise ConfigError.of("plan-does-not-fit", problems)


def spent(budget: BudgetConfig | None, cost: float, hours: float, currency: str) -> str:
    """Why no more trials are started; empty if they are.

    Args:
        budget: What a sweep may take; None for no limit.
        cost: What its trials have cost.
        hours: Hours since it began.
        currency: Currency of the cost.
    """
    if budget is None:
        return ""
    if budget.cost is not None and cost >= budget.cost:
        return f"{cost:,.2f} of {budget.cost:,.2f} {currency} are spent"
    if budget.hours is not None and hours >= budget.hours:
        return f"{hours_text(hours)} of {hours_text(budget.hours)} are over"
    return ""


def beyond(budget: BudgetConfig | None, cost: float, hours: float, currency: str) -> str:
    """Why a round is not started; empty if it is.

    Args:
        budget: What a sweep may take; None for no limit.
        cost: What its trials have cost, and those of the round are expected to.
        hours: Hours since it began until the round is expected to be done.
        currency: Currency of the cost.
    """
    if budget is None:
        return ""
    if budget.cost is not None and cost > budget.cost:
        return f"with the next ones {cost:,.2f} of {budget.cost:,.2f} {currency} would be spent"
    if budget.hours is not None and hours > budget.hours:
        return f"with the next ones it would take {hours_text(hours)} of {hours_text(budget.hours)}"
    return ""


def _remedy(possible: int) -> str:
    fewer = f"Try at most {possible} trial{'s' if possible > 1 else ''}" if possible else "Shorten the trials"
    return f"{fewer} (training.max_steps shortens them), or raise the budget."


def _hours(plan: TrainingPlan) -> float:
    if plan.spot is not None:
        return plan.spot.billed_hours
    assert plan.time is not None
    return plan.time.hours


def _hours_of(pack: PlannedPack, plans: Mapping[int, TrainingPlan]) -> float:
    """Hours until a pack is done: a slot takes the longest trial that waits."""
    free = [0.0] * pack.slots
    for hours in sorted((_hours(plans[number]) for number in pack.numbers), reverse=True):
        free[free.index(min(free))] += hours
    return max(free)

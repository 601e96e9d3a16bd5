"""Which of the choices that fit is the best one: the cheapest, or the soonest; and which are too late or too dear."""

import logging
import math
from collections.abc import Sequence
from typing import Literal

from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.planning.choices import Fitting, Refusal
from thriftune.planning.time.run import ERROR

logger = logging.getLogger(__name__)

Minimize = Literal["cost", "time", "price_per_hour"]

# The ways to run on some machines come with the usually fastest one first. Another one has to be faster by as much as
# the time of a step may be off.
_CLEARLY = ERROR[0]


def fastest(ways: Sequence[Fitting]) -> Fitting | None:
    """The fastest of several ways to run on the same machines; the first one where times are not known.

    Args:
        ways: Those that fit, the usually fastest first.
    """
    best: Fitting | None = None
    for way in ways:
        if best is None or _is_clearly_faster(way, best):
            best = way
    return best


def _is_clearly_faster(one: Fitting, other: Fitting) -> bool:
    if one.time is None or other.time is None:
        return False
    return one.time.step.seconds < _CLEARLY * other.time.step.seconds


def in_order(found: Sequence[Fitting], minimize: Minimize) -> list[Fitting]:
    """Choices that fit, the best first; those whose time is not known come last.

    Args:
        found: The choices, those with the lowest price per hour first.
        minimize: What is to be low.
    """

    def by(choice: Fitting) -> tuple[bool, float, float]:
        if minimize == "price_per_hour":
            return False, choice.choice.price_per_hour, 0.0
        hours, cost = choice.hours, choice.cost
        if hours is None or cost is None:
            return True, choice.choice.price_per_hour, 0.0
        return (False, cost, hours) if minimize == "cost" else (False, hours, cost)

    return sorted(found, key=by)


def require_countable(config: RunConfig, steps: int) -> None:
    """Refuse a deadline for a run whose number of steps is not known: no machine is known to keep to it.

    Args:
        config: The run.
        steps: Its optimizer steps; 0 where that is not known.

    Raises:
        ConfigError: It has a deadline.
    """
    deadline = config.plan.deadline_hours
    if deadline is None or steps:
        return
    message = "how many rows the run has is not known, so neither is how many steps and hours it takes."
    remedy = "Give training.max_steps, or rows that can be counted; or leave plan.deadline_hours out."
    raise ConfigError.single("plan.deadline_hours", f"{deadline:g}", message, remedy, code="plan-does-not-fit")


def warn_of_budget(config: RunConfig, steps: int) -> None:
    """Say of a run whose number of steps is not known that its budget ruled nothing out.

    Args:
        config: The run.
        steps: Its optimizer steps; 0 where that is not known.
    """
    if config.plan.budget is not None and not steps:
        logger.warning(
            "plan.budget = %g was no limit for the plan, as it is not known how many rows and steps the run has "
            "(training.max_steps would say it). The training stops before it costs more.",
            config.plan.budget,
        )


def within(config: RunConfig, found: Sequence[Fitting]) -> tuple[list[Fitting], list[Refusal]]:
    """Choices that keep to the deadline and the budget, and why the others do not.

    A choice whose time is not known is none that is known to keep to them. Where only the number of steps is not, which
    is the same for all, a budget refuses none: the training stops at it.

    Args:
        config: The run.
        found: The choices.
    """
    limits = config.plan
    kept, refused = [], []
    for one in found:
        # A machine without a price keeps to every budget, however long it takes.
        budget = limits.budget if one.choice.price_per_hour else None
        over = _over(one, limits.deadline_hours, budget)
        if over:
            excess, reason, _ = max(over)
            remedy = " ".join(remedy for _, _, remedy in over)
            refused.append(Refusal(one.choice.machines, one.choice, reason, excess, has_room=True, remedy=remedy))
        else:
            kept.append(one)
    return kept, refused


def _over(one: Fitting, deadline: float | None, budget: float | None) -> list[tuple[float, str, str]]:
    """By how much a choice exceeds the limits, that as text, and what to do about it."""
    if one.time is not None and not one.time.steps:
        budget = None
    if deadline is None and budget is None:
        return []
    if one.time is None or one.hours is None or not one.time.steps or one.cost is None:
        reason = "fits, but how long it takes is not known, so neither a deadline nor a budget can be kept"
        named = f"under devices.{one.choice.offer.device.name} in a catalogue"
        return [(math.inf, reason, f"Leave plan.deadline_hours and plan.budget out, or give its speed {named}.")]
    hours, over = one.hours, []
    if deadline is not None and hours > deadline:
        reason = f"fits, and takes {hours:.1f} hours, where plan.deadline_hours is {deadline:g}"
        over.append((hours / deadline, reason, f"Set plan.deadline_hours to {_rounded_up(hours)} or more."))
    if budget is not None and one.cost > budget:
        reason = f"fits, and costs {one.cost:,.2f}, where plan.budget is {budget:g}"
        over.append((one.cost / budget, reason, f"Set plan.budget to {_rounded_up(one.cost)} or more."))
    return over


def _rounded_up(value: float) -> str:
    return f"{math.ceil(100 * value) / 100:.2f}"

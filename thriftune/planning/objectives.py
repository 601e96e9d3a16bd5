"""Which of the choices that fit is the best one: the cheapest, or the soonest; and which are too late or too dear."""

from collections.abc import Sequence
from typing import Literal

from thriftune.config import RunConfig
from thriftune.planning.choices import Fitting, Refusal
from thriftune.planning.time.run import ERROR

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


def within(config: RunConfig, found: Sequence[Fitting]) -> tuple[list[Fitting], list[Refusal]]:
    """Choices that keep to the deadline and the budget, and why the others do not.

    A choice whose time is not known is none that is known to keep to them.

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
            excess, reason = max(over)
            refused.append(Refusal(one.choice.machines, one.choice, reason, excess, has_room=True))
        else:
            kept.append(one)
    return kept, refused


def _over(one: Fitting, deadline: float | None, budget: float | None) -> list[tuple[float, str]]:
    """By how much a choice exceeds the limits, and as text."""
    if deadline is None and budget is None:
        return []
    if one.time is None or one.hours is None or not one.time.steps or one.cost is None:
        return [
            (float("inf"), "fits, but how long it takes is not known, so neither a deadline nor a budget can be kept")
        ]
    hours, over = one.hours, []
    if deadline is not None and hours > deadline:
        over.append((hours / deadline, f"fits, and takes {hours:.1f} hours, where plan.deadline_hours is {deadline:g}"))
    if budget is not None and one.cost > budget:
        over.append((one.cost / budget, f"fits, and costs {one.cost:,.2f}, where plan.budget is {budget:g}"))
    return over

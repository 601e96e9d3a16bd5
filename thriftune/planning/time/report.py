"""The time of a plan for people: what a step and the run take, what they cost, and what that leans on."""

from collections.abc import Iterator

from thriftune.training_plan import ASSUMED_STEPS, RunTime, SpotTime

COLUMNS = ("s per step", "hours", "cost")
_UNKNOWN = "-"
_SHOWN_SHARE = 0.01


def facts(time: RunTime | None, price_per_hour: float, currency: str) -> Iterator[tuple[str, str, str]]:
    """What a plan says of time and cost: a name, a value, and a note each.

    Args:
        time: The time; None where it is not known.
        price_per_hour: Of all nodes.
        currency: Of the price.
    """
    if time is None:
        yield "time", "unknown", "the speed of the device is not known"
        return
    yield "step", f"{duration(time.step.seconds)}, {time.tokens_per_second:,.0f} tokens/s", shares(time)
    counted = f"{time.steps or ASSUMED_STEPS:,} steps"
    if not time.steps:
        counted += " (how many there are is not known)"
    span = f"{hours(time.hours_low)} to {hours(time.hours_high)} for {counted}"
    yield "run", hours(time.hours), f"{span}, {time.leans_on}; {time.tokens_from}"
    if price_per_hour:
        low, high = (price_per_hour * value for value in (time.hours_low, time.hours_high))
        yield "cost of the run", f"{price_per_hour * time.hours:,.2f} {currency}", f"{low:,.2f} to {high:,.2f}"


def spot_facts(spot: SpotTime | None, price_per_hour: float, currency: str) -> Iterator[tuple[str, str, str]]:
    """What a plan for spot nodes says of interruptions and checkpoints: a name, a value, and a note each.

    Args:
        spot: What the run is expected to take; None where that is not known.
        price_per_hour: Of all nodes.
        currency: Of the price.
    """
    if spot is None:
        yield "spot nodes", "unknown", "how long the run takes, or how often such nodes are interrupted, is not known"
        return
    often = f"a node has {spot.interruptions_per_month:g} in a month ({spot.rate_from})"
    yield (
        "spot nodes",
        f"{hours(spot.billed_hours)} billed",
        f"{spot.interruptions:.2g} interruptions expected; {often}",
    )
    if price_per_hour:
        prices = "of the spot market" if spot.has_spot_price else "on demand: the catalogue has none of the spot market"
        yield "cost on spot nodes", f"{spot.cost:,.2f} {currency}", f"at the price {prices}"
    saved = f"{spot.saved_gib:.2g} GiB are written and uploaded in {duration(spot.saving_seconds)}"
    best = f"{minutes(spot.best_minutes)} would cost least"
    cheaper = f", {spot.best_cost:,.2f} {currency}" if price_per_hour else ""
    yield "checkpoints", f"every {minutes(spot.every_minutes)}", f"{best}{cheaper} (checkpoints.every_minutes); {saved}"


def cells(time: RunTime | None, price_per_hour: float, spot: SpotTime | None = None) -> list[str]:
    """A row's cells under `COLUMNS`.

    Args:
        time: The time; None where it is not known.
        price_per_hour: Of all nodes.
        spot: What the run is expected to take on spot nodes, if it has some.
    """
    if time is None:
        return [_UNKNOWN] * len(COLUMNS)
    taken, cost = (spot.billed_hours, spot.cost) if spot else (time.hours, price_per_hour * time.hours)
    return [f"{time.step.seconds:,.3g}", f"{taken:,.1f}", f"{cost:,.2f}"]


def shares(time: RunTime) -> str:
    """What the devices do in a step, as shares of their time; waiting for other layers in plain words.

    Args:
        time: The time.
    """
    busy, step = 1 - time.step.waiting, time.step
    found = [(part, busy * seconds / step.seconds) for part, seconds in step.parts.items()]
    found += [("waiting for other layers", step.waiting)]
    return ", ".join(f"{part} {100 * share:.0f} %" for part, share in found if share >= _SHOWN_SHARE)


def hours(value: float) -> str:
    """Hours as text, or minutes below two hours.

    Args:
        value: Hours.
    """
    return f"{value:,.1f} hours" if value >= 2 else f"{60 * value:.0f} min"


def minutes(value: float) -> str:
    """Minutes as text, as the run file has them.

    Args:
        value: Minutes.
    """
    return f"{value:.2g} min" if value < 10 else f"{value:,.0f} min"


def duration(seconds: float) -> str:
    """Seconds as text, with two digits.

    Args:
        seconds: The seconds.
    """
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"

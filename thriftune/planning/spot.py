"""What a run on spot nodes is expected to cost: interruptions at random, checkpoints, and starting again.

Interruptions come at random moments and at a constant rate, also while a node starts. After one, the run starts again
from its last checkpoint. What is billed is the time that nodes run, not the time that is waited for new ones.

Source: J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps (2006). J. W. Young, A
first order approximation to the optimum checkpoint interval (1974).
"""

import math
from dataclasses import dataclass, replace

from thriftune.errors import ConfigError

_HOURS_PER_MONTH = 730.0
# A run that is expected to take this many times what it takes without interruptions is refused: they then cost more
# than what spot nodes are cheaper by, which is 60 to 90 % (AWS says up to 90 %).
_MOST_TIMES = 5.0


@dataclass(frozen=True)
class SpotRun:
    """A run on spot nodes.

    Attributes:
        hours: Hours of training, without starting and saving.
        rate: Interruptions of the run per hour: those of a node, times the number of nodes.
        startup_hours: Billed hours until training goes on after a start: image, download, loading, restoring.
        interval_hours: Hours of training from one checkpoint to the next.
        checkpoint_hours: Hours that the training stands still for a checkpoint.
        noticed: Share of the interruptions that are noticed early enough to save a checkpoint before the node is gone.
        waiting_hours: Hours until there are nodes, before each start. They are not billed.
    """

    hours: float
    rate: float
    startup_hours: float
    interval_hours: float
    checkpoint_hours: float
    noticed: float = 0.0
    waiting_hours: float = 0.0

    def __post_init__(self) -> None:
        positive = ("hours", "interval_hours")
        for name, value in vars(self).items():
            if not 0 <= value < math.inf or (name in positive and not value):
                raise ValueError(f"{name} = {value} is not a number that a run can have.")
        if self.noticed > 1:
            raise ValueError(f"noticed = {self.noticed} is more than all.")


@dataclass(frozen=True)
class Expected:
    """What a run on spot nodes is expected to take.

    Attributes:
        billed_hours: Hours that its nodes run.
        hours: Hours until it is done, with the time that is waited for nodes.
        interruptions: Number of interruptions.
        cost: Price of the billed hours.
    """

    billed_hours: float
    hours: float
    interruptions: float
    cost: float


def rate_of(per_month: float, nodes: int = 1) -> float:
    """Interruptions per hour of a run on some nodes: if one node goes, all start again.

    Args:
        per_month: Interruptions of one node in a month.
        nodes: Number of nodes.
    """
    return per_month / _HOURS_PER_MONTH * nodes


def expected(run: SpotRun, price_per_hour: float) -> Expected:
    """What a run is expected to take and to cost, on average over many such runs.

    Args:
        run: The run.
        price_per_hour: Of all nodes, while they run.

    Raises:
        ConfigError: The run would hardly ever finish.
    """
    billed = _billed_hours(run)
    if billed > _MOST_TIMES * _billed_hours(replace(run, rate=0.0)):
        raise _hardly_ever(run, billed)
    interruptions = run.rate * billed
    return Expected(billed, billed + (1 + interruptions) * run.waiting_hours, interruptions, billed * price_per_hour)


def best_interval(run: SpotRun) -> float:
    """Hours of training between checkpoints for which a run costs least; all of its hours where none is needed.

    Args:
        run: The run; its own interval does not matter.

    Raises:
        ValueError: Checkpoints cost nothing, so that none can be too many.
    """
    if not run.checkpoint_hours:
        raise ValueError("Checkpoints that take no time have no best interval.")
    rate = _unnoticed(run)
    if not rate:
        return run.hours
    between, saving = 1 / rate, run.checkpoint_hours
    if saving >= 2 * between:
        return min(run.hours, between)
    share = saving / (2 * between)
    found = math.sqrt(2 * saving * between) * (1 + math.sqrt(share) / 3 + share / 9) - saving
    return min(run.hours, found)


def _billed_hours(run: SpotRun) -> float:
    """Expected billed hours; infinite where they are too many for a number.

    To get through t hours that begin again at each interruption takes (e^(rate t) - 1) / rate hours. Starting is such a
    piece, and so is each interval with its checkpoint, where what is noticed loses nothing.
    """
    start = _through(run.startup_hours, run.rate)
    whole, rest = divmod(run.hours, run.interval_hours)
    pieces = whole * _through(run.interval_hours + run.checkpoint_hours, _unnoticed(run))
    if rest:
        pieces += _through(rest + run.checkpoint_hours, _unnoticed(run))
    noticed = run.rate - _unnoticed(run)
    return start + pieces * (1 + run.rate * start + noticed * run.checkpoint_hours)


def _through(hours: float, rate: float) -> float:
    """Expected hours to get through a piece of work that begins again at each interruption."""
    try:
        return math.expm1(rate * hours) / rate if rate else hours
    except OverflowError:
        return math.inf


def _unnoticed(run: SpotRun) -> float:
    return run.rate * (1 - run.noticed)


def _hardly_ever(run: SpotRun, billed: float) -> ConfigError:
    """The error that a run would hardly ever finish, with the arithmetic."""
    piece = run.startup_hours + run.interval_hours + run.checkpoint_hours
    success = math.exp(-run.rate * run.startup_hours - _unnoticed(run) * (piece - run.startup_hours))
    taken = f"{billed:.3g} billed hours are" if math.isfinite(billed) else "no end of it is"
    message = (
        f"on spot nodes this run would hardly ever finish. One interruption is expected every {1 / run.rate:.2f} h. "
        f"From a start to the next checkpoint it takes {run.startup_hours:.2f} h of starting + "
        f"{run.interval_hours:.2f} h of training + {run.checkpoint_hours:.2f} h of saving = {piece:.2f} h, in which "
        f"{success:.1%} of the tries succeed: {taken} expected for {run.hours:.2f} h of training."
    )
    better = replace(run, interval_hours=best_interval(run)) if run.checkpoint_hours else run
    hours = _billed_hours(better)
    remedy = "Take nodes that are not interrupted (THRIFTUNE_INTERRUPTIBLE=false)"
    if hours <= _MOST_TIMES * _billed_hours(replace(better, rate=0.0)) and better != run:
        minutes = 60 * better.interval_hours
        remedy += f", or save every {minutes:.0f} minutes, with which {hours:.1f} billed hours are expected"
    return ConfigError.single("checkpoints.every_minutes", f"{60 * run.interval_hours:g}", message, f"{remedy}.")

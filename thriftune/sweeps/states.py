"""The page of a pack: what each of its trials does now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thriftune import pages
from thriftune.training.charts import duration


@dataclass(frozen=True)
class State:
    """What a trial does now.

    Attributes:
        number: Number of the trial.
        status: What it does, or what came of it.
        steps: Validations so far: optimizer steps done.
        losses: The held-out loss at each of them, in nats.
        seconds: Seconds that it had its device.
    """

    number: int
    status: str
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    seconds: float = 0.0


def page_of(pack: int, states: Sequence[State], pages_of: Mapping[int, str]) -> str:
    """The page of a pack, as HTML.

    Args:
        pack: Its number.
        states: Its trials.
        pages_of: Where the page of each trial is, by its number.
    """
    return pages.render("sweeps/pack.html.jinja", {"duration": duration}, pack=pack, states=states, pages_of=pages_of)

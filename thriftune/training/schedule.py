"""The learning rate over the steps of a run, as a share of its peak."""

import math
from collections.abc import Callable

# What is left of the peak when a share of the steps after warmup is done; by transformers' names of the schedulers.
_FALLS: dict[str, Callable[[float], float]] = {
    "constant_with_warmup": lambda _done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def rate_share(step: int, *, scheduler: str, warmup: int, total: int) -> float:
    """The learning rate of a step, as a share of the peak.

    transformers begins at 0, so that the first batch of every run has no effect, and with one step of warmup, as a
    short run has, that is all that warmup does. Here it rises in even parts that are all above 0, and is at its peak
    in the same step as there.

    Args:
        step: The optimizer step, from 0.
        scheduler: Name that transformers has for it.
        warmup: Steps that the rate rises over, below the peak.
        total: Steps of the run.

    Returns:
        From 0 to 1; above 0 in every step of the run.

    Source:
        transformers 5.23, get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, for the fall
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _FALLS[scheduler](min(1.0, (step - warmup) / max(1, total - warmup)))

"""The learning rate over the steps of a run, as a share of its peak."""

import math
from collections.abc import Callable

# The share of the peak that is left after a share of the steps after warmup; by transformers' names of schedulers.
_FALLS: dict[str, Callable[[float], float]] = {
    "constant_with_warmup": lambda _done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def rate_share(step: int, *, scheduler: str, warmup: int, total: int) -> float:
    """The learning rate of a step, as a share of the peak.

    In transformers it starts at 0, so that the first batch of every run has no effect; with the one step of warmup of a
    short run, that is all that warmup does. Here it rises in equal parts that are all above 0, and reaches its peak in
    the same step.

    Args:
        step: The optimizer step, from 0.
        scheduler: transformers' name of the scheduler.
        warmup: Number of steps below the peak, in which the rate rises.
        total: Number of steps of the run.

    Returns:
        The share, from 0 to 1; above 0 in every step of the run.

    Source:
        transformers 5.23, get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, for the fall
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _FALLS[scheduler](min(1.0, (step - warmup) / max(1, total - warmup)))

"""Which trial of a sweep is the best."""

import math
from collections.abc import Iterable, Mapping

from thriftune.sweeps.outcomes import Outcome


def losses_of(outcomes: Iterable[Outcome]) -> dict[int, float]:
    """The held-out loss of what each trial made, by its number; of trials that trained to their end.

    Args:
        outcomes: What came of the trials.
    """
    return {one.number: one.training.after.loss for one in outcomes if one.status == "trained" and one.training}


def best_of(outcomes: Iterable[Outcome], scores: Mapping[int, float], *, is_higher_better: bool = False) -> int | None:
    """The number of the best trial: of equal ones the first.

    One that failed, that was stopped, or whose score is no number never is.

    Args:
        outcomes: What came of the trials.
        scores: What each is judged by, by its number.
        is_higher_better: Whether a higher score is better.

    Returns:
        None if no trial can be.
    """
    sign = -1.0 if is_higher_better else 1.0
    trained = [one.number for one in outcomes if one.status == "trained"]
    judged = [(sign * scores[number], number) for number in trained if math.isfinite(scores.get(number, math.nan))]
    return min(judged)[1] if judged else None

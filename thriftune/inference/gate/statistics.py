"""Paired statistics of two models on the same items: how large a difference is, and how sure that is.

Every interval is a paired bootstrap with smooth weights (the Bayesian bootstrap: weights from a Dirichlet distribution
in place of counts), and with one more item beside those that were seen: for the lower end one that got worse by as much
as an item can, or any did, for the upper end one that got better by as much. Of the intervals that were compared by
simulation (docs/evaluation.md) it comes closest to what it says for few items, where percentile and BCa intervals of a
plain bootstrap are too short or have no length at all. Four things follow from it:

- Of scores that are 0 or 1, the interval leaves out zero exactly where McNemar's exact test is significant, and the
  interval of one model's share is that of Clopper and Pearson.
- Where none of 300 of these changed, up to 1.2 % of such items still may.
- Where both models did exactly the same, the interval is exactly zero: no change, however few the items.
- Where each of five items got better, 95 % is not reached; where each of six did, it is.

Sources: Rubin, The Bayesian bootstrap (1981); Gaffke, Three test statistics for a nonparametric one-sided hypothesis on
the mean of a nonnegative variable (2005); Learned-Miller and Thomas, A new confidence interval for the mean of a
bounded random variable (2019).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
# What is compared: means over items, sums over tokens, or how much a mean changed for its size.
Kind = Literal["mean", "per_token", "relative"]

RESAMPLES = 10_000
# Resamples that have to lie beyond an end of an interval, or the end is not known well: more at a high confidence.
_BEYOND = 100
# Weights that are drawn at once, so that many items need no more memory than few: 16 MB.
_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A number that was measured on items, and between what it would be on all items of their kind.

    Attributes:
        value: The number.
        low: Lower end of its interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two models on the same items.

    Attributes:
        base: The value of the first.
        tuned: The value of the second.
        change: The second's less the first's; of `relative`, as a share of the first's.
        deviation: Standard deviation of the change of one item, in the unit of the change.
    """

    base: Estimate
    tuned: Estimate
    change: Estimate
    deviation: float


@dataclass(frozen=True)
class Sample:
    """The values of two models on the same items.

    Attributes:
        columns: For each item its value, number of tokens, and the same two of the second model: [items, 4]. The
            number of tokens is what the value is a sum over; 1 unless the kind is per_token.
        kind: What is compared.
        is_same: Whether both models did exactly the same, and not only as well, on every item.
    """

    columns: Values
    kind: Kind = "mean"
    is_same: bool = False

    @classmethod
    def of(
        cls,
        base: Values,
        tuned: Values,
        kind: Kind = "mean",
        tokens: tuple[Values, Values] | None = None,
        *,
        is_same: bool = False,
    ) -> Self:
        """The values of two models on the same items.

        Args:
            base: Of the first model, one for each item.
            tuned: Of the second.
            kind: What is compared.
            tokens: For per_token, the number of tokens of each item, for both models.
            is_same: Whether both models did exactly the same, and not only as well, on every item.

        Raises:
            ValueError: There are no items, a value is not a finite number, or there are no tokens.
        """
        before, after = tokens or (np.ones(len(base)), np.ones(len(tuned)))
        if not len(base) or len({len(base), len(tuned), len(before), len(after)}) > 1:
            raise ValueError("Both models need one value for each item, and there must be items.")
        columns = np.stack([base, before, tuned, after], axis=1).astype(float)
        if not np.isfinite(columns).all():
            raise ValueError("A value is not a finite number.")
        if columns[:, [1, 3]].sum(axis=0).min() <= 0:
            raise ValueError("The items have no tokens.")
        return cls(columns, kind, is_same)

    @property
    def base(self) -> float:
        """The value of the first model."""
        return float(_base(self.columns.sum(axis=0)))

    @property
    def rises(self) -> Values:
        """By how much each item rose; of sums over tokens, per token."""
        value, tokens, later, later_tokens = self.columns.T
        return np.asarray(later / np.maximum(later_tokens, 1) - value / np.maximum(tokens, 1))

    @property
    def is_binary(self) -> bool:
        """Whether each item is 0 or 1."""
        return self.kind == "mean" and bool(np.isin(self.columns[:, [0, 2]], (0, 1)).all())

    @property
    def changes(self) -> Values:
        """The change of each item, in the unit of the change, less that of the mean."""
        sums = self.columns.sum(axis=0)
        base, tuned = _base(sums), _tuned(sums)
        value, tokens, later, later_tokens = self.columns.T
        each = (later - tuned * later_tokens) / later_tokens.mean() - (value - base * tokens) / tokens.mean()
        return np.asarray(each / (_size(base) if self.kind == "relative" else 1.0))

    @property
    def means(self) -> Values:
        """The mean of each column."""
        return np.asarray(self.columns.mean(axis=0))


def paired(sample: Sample, confidence: float, seed: int, resamples: int = RESAMPLES) -> Paired:
    """Compare two models on the same items.

    Args:
        sample: Their values.
        confidence: Share of intervals that hold the truth; half of the others lie above it, half below.
        seed: Seed of the resamples.
        resamples: Number of resamples; more are made where the confidence asks for it.

    Returns:
        Both values and the change, each with its interval.
    """
    tail = (1 - confidence) / 2
    count = max(resamples, math.ceil(_BEYOND / tail))
    sums, extra = _resampled(sample.columns, np.random.default_rng(seed), count)

    def estimate(measure: Callable[[Values], Values], lowest: Values, highest: Values) -> Estimate:
        value = float(measure(sample.columns.sum(axis=0)))
        low = float(np.quantile(measure(sums + extra * lowest), tail))
        high = float(np.quantile(measure(sums + extra * highest), 1 - tail))
        return Estimate(value, min(low, value), max(high, value))

    return Paired(
        estimate(_base, *_extremes(sample, slice(0, 2))),
        estimate(_tuned, *_extremes(sample, slice(2, 4))),
        estimate(lambda drawn: _change(drawn, sample.kind), *_worst_and_best(sample)),
        deviation=float(np.std(sample.changes)),
    )


def _resampled(columns: Values, random: np.random.Generator, resamples: int) -> tuple[Values, Values]:
    """Weighted sums of the columns [resamples, 4], and the weight of one more item [resamples, 1].

    Items with the same values are drawn together: the sum of n exponential weights is one gamma weight. Of scores that
    are 0 or 1 there are four different items at most.
    """
    distinct, counts = np.unique(columns, axis=0, return_counts=True)
    at_once = max(1, _AT_ONCE // len(distinct))
    sums = [
        random.standard_gamma(counts, (min(at_once, resamples - first), len(counts))) @ distinct
        for first in range(0, resamples, at_once)
    ]
    return np.concatenate(sums), random.standard_exponential((resamples, 1))


def _extremes(sample: Sample, columns: slice) -> tuple[Values, Values]:
    """The lowest and the highest item that one model may have: 0 and 1 of shares, else those that were seen."""
    value, tokens = sample.columns[:, columns].T
    each = value[tokens > 0] / tokens[tokens > 0]
    low, high = float(each.min()), float(each.max())
    if sample.kind == "mean" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    items = []
    for extreme in (low, high):
        item = sample.means
        item[columns] = extreme * tokens.mean(), tokens.mean()
        items.append(item)
    return items[0], items[1]


def _worst_and_best(sample: Sample) -> tuple[Values, Values]:
    """An item that fell, and one that rose, by as much as any item changed; of 0 and 1, by as much as one can."""
    value, tokens, later, later_tokens = sample.columns.T
    largest = float(np.abs(later / later_tokens.mean() - value / tokens.mean()).max())
    if sample.is_binary and not sample.is_same:
        largest = 1.0
    items = []
    for change in (-largest, largest):
        item = sample.means
        item[2] = (item[0] / item[1] + change) * item[3]
        items.append(item)
    return items[0], items[1]


def _base(sums: Values) -> Values:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _tuned(sums: Values) -> Values:
    return np.asarray(sums[..., 2] / sums[..., 3])


def _change(sums: Values, kind: Kind) -> Values:
    base = _base(sums)
    change = _tuned(sums) - base
    return np.asarray(change / _size(base) if kind == "relative" else change)


def _size(base: Values) -> Values:
    """What a relative change is a share of. Lengths are in tokens: a base that writes nothing counts as one token."""
    return np.maximum(np.abs(base), 1.0)


def distance(values: Sequence[float], kind: Kind) -> float:
    """How far the lowest and the highest of several values lie apart, in the unit of a change.

    Args:
        values: The values, one at least.
        kind: What is compared.
    """
    lowest, highest = np.asarray(min(values)), np.asarray(max(values))
    return float((highest - lowest) / (_size(lowest) if kind == "relative" else 1.0))


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test: how likely so uneven a number of items became right or wrong if both models are equal.

    Args:
        better: Number of items that became right.
        worse: Number of items that became wrong.

    Returns:
        The p-value of both sides.
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def items_needed(deviation: float, effect: float, confidence: float, power: float = 0.8) -> int | None:
    """How many items it takes to tell a change from a threshold.

    Args:
        deviation: Standard deviation of the change of one item.
        effect: Distance of the change from the threshold, in the same unit.
        confidence: Confidence of the interval, of both sides.
        power: Share of such comparisons in which the interval then lies on one side of the threshold.

    Returns:
        The number of items; None if the change is at the threshold, where no number is enough.
    """
    if abs(effect) < 1e-9:
        return None
    reach = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    spread = (reach * deviation / effect) ** 2
    # One more item than was seen, as far off as an item can be: it moves the interval by about one item's change.
    return max(math.ceil(spread + reach), fewest_items(confidence))


def items_to_exclude(share: float, confidence: float) -> int | None:
    """How many items, of which none changed, show that no more than a share of all items does.

    Args:
        share: The share.
        confidence: Confidence of the interval, of both sides.

    Returns:
        The number of items; None where no number is enough.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-share)) if 0 < share < 1 else None


def fewest_items(confidence: float) -> int:
    """The number of items below which nothing can be told, though all of them change in one way.

    Args:
        confidence: Confidence of the interval, of both sides.
    """
    return math.ceil(math.log2(2 / (1 - confidence)))

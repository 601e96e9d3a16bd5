"""Choosing the examples that share a row: as many as fit, of mixed lengths."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.integer]

# Shares of the tokens, in the shortest items, to keep back for filling the gaps that the others leave. With less kept
# back, lengths mix better but more gaps remain; the first share that needs few enough bins is taken.
_KEPT_BACK = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
# Allowed extra bins, as a share of those of best-fit decreasing: each is a row computed only for mixing.
_MORE_BINS = 0.005


def pack(lengths: "Ints", capacity: int, seed: Sequence[int]) -> list[list[int]]:
    """Mix items of all lengths in each bin, with hardly more bins than best-fit decreasing needs.

    Best-fit decreasing puts items of similar length together: long ones first, then bins of only short ones. If length
    depends on the kind of example (code is long, trivia is short), a training step then sees only one kind. So the
    bins are filled again: longest first, each into the emptiest bin, which spreads every length over all bins; then the
    last and shortest into the fullest bin that has room. If that needs too many bins, as with items slightly below half
    a bin and slightly above a third, the result of best-fit decreasing is kept.

    Args:
        lengths: Length of each item, at most `capacity`.
        capacity: Size of a bin.
        seed: Numbers that decide which of the items of the same length goes where.

    Returns:
        The items of each bin, by index. At most 0.5 % more bins than from `best_fit_decreasing`.
    """
    import numpy as np

    ties = np.random.Philox(list(seed)).random_raw(len(lengths))
    order = np.lexsort((ties, -lengths))
    tightest = best_fit_decreasing(lengths, capacity, order)
    sums = np.cumsum(lengths[order])
    for share in _KEPT_BACK if len(order) else ():
        spread = int(np.searchsorted(sums, (1 - share) * sums[-1]))
        bins = _Bins(capacity, len(tightest))
        bins.put(order[:spread], lengths, emptiest=True)
        bins.put(order[spread:], lengths)
        mixed = bins.filled()
        if len(mixed) <= len(tightest) * (1 + _MORE_BINS):
            return mixed
    return tightest


def best_fit_decreasing(lengths: "Ints", capacity: int, order: "Ints | None" = None) -> list[list[int]]:
    """Put items into as few bins as this heuristic finds: longest first, each into the fullest bin that has room.

    Args:
        lengths: Length of each item, at most `capacity`.
        capacity: Size of a bin.
        order: The items by falling length; if None, items of the same length keep their order.

    Returns:
        The items of each bin, by index. Never more than 11/9 of the bins of the best packing, plus one.

    Source: best-fit decreasing, Johnson et al. 1974, https://doi.org/10.1137/0203025; for training rows: Ding et al.
    2024, https://arxiv.org/abs/2404.10830.
    """
    import numpy as np

    bins = _Bins(capacity)
    bins.put(np.argsort(-lengths, kind="stable") if order is None else order, lengths)
    return bins.filled()


class _Bins:
    """Bins that are found by their remaining space."""

    def __init__(self, capacity: int, count: int = 0) -> None:
        """Start with some empty bins; more are added as needed."""
        self._capacity = capacity
        self._bins: list[list[int]] = [[] for _ in range(count)]
        self._spaces = [capacity] if count else []  # remaining spaces of bins, sorted, without repeats
        self._bins_with: defaultdict[int, list[int]] = defaultdict(list)
        if count:
            self._bins_with[capacity] = list(reversed(range(count)))  # so that the first one is used first

    def put(self, items: "Ints", lengths: "Ints", *, emptiest: bool = False) -> None:
        """Put each item into the fullest bin with room for it, or the emptiest; into a new one if none has room."""
        spaces, bins_with = self._spaces, self._bins_with
        for item, length in zip(items.tolist(), lengths[items].tolist(), strict=True):
            fits_emptiest = emptiest and spaces and spaces[-1] >= length
            place = len(spaces) - 1 if fits_emptiest else bisect_left(spaces, length)
            if place == len(spaces):
                chosen, space = len(self._bins), self._capacity
                self._bins.append([])
            else:
                space = spaces[place]
                chosen = bins_with[space].pop()
                if not bins_with[space]:
                    del spaces[place]
            self._bins[chosen].append(item)
            left = space - length
            if left:
                if not bins_with[left]:
                    insort(spaces, left)
                bins_with[left].append(chosen)

    def filled(self) -> list[list[int]]:
        """The items of each bin that is not empty."""
        return [items for items in self._bins if items]

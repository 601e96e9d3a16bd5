"""Which examples share a row: best-fit decreasing."""

from bisect import bisect_left, insort
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def pack(lengths: "npt.NDArray[np.integer]", capacity: int) -> list[list[int]]:
    """Put items into as few bins as this heuristic finds: longest first, each into the fullest bin that has room.

    Args:
        lengths: Length of each item, at most `capacity`.
        capacity: Room of a bin.

    Returns:
        The items of each bin, by index. Never more than 11/9 of the bins of the best packing, plus one.

    Source: best-fit decreasing, Johnson et al. 1974, https://doi.org/10.1137/0203025; for training rows: Ding et al.
    2024, https://arxiv.org/abs/2404.10830.
    """
    import numpy as np

    bins: list[list[int]] = []
    spaces: list[int] = []  # rooms that some bin has left, each once, in order
    bins_with: defaultdict[int, list[int]] = defaultdict(list)
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect_left(spaces, length)
        if place == len(spaces):
            chosen, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[place]
            chosen = bins_with[space].pop()
            if not bins_with[space]:
                del spaces[place]
        bins[chosen].append(item)
        left = space - length
        if left:
            if not bins_with[left]:
                insort(spaces, left)
            bins_with[left].append(chosen)
    return bins

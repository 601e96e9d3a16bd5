"""Which rows of each source are used, and which of them are held out: decided by seed and position, in no memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from thriftune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
_WORDS = 4  # Philox makes four numbers at a time


class Fate(IntEnum):
    """What a row is for."""

    UNUSED = 0
    TRAIN = 1
    HELD_OUT = 2


@dataclass(frozen=True)
class Selection:
    """Which rows of one source are used.

    Attributes:
        seed: Of the run.
        source: Index of the source.
        count: Its rows.
        used: How many of them are used.
        held_out: How many of those are held out.
        last_held_out: Highest rank of a held-out row.
        last_used: Highest rank of a used row.
    """

    seed: int
    source: int
    count: int
    used: int
    held_out: int
    last_held_out: int
    last_used: int

    def fates(self, start: int, count: int) -> "npt.NDArray[np.uint8]":
        """A `Fate` for each of `count` rows from row `start` on (counted from 0)."""
        import numpy as np

        ranks = _ranks(self.seed, self.source, start, count)
        fates = np.full(count, Fate.UNUSED, dtype=np.uint8)
        if self.used:
            fates[ranks <= self.last_used] = Fate.TRAIN
        if self.held_out:
            fates[ranks <= self.last_held_out] = Fate.HELD_OUT
        return fates


def select(
    counts: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    max_rows: int | None = None,
    validation_share: float,
    seed: int,
) -> list[Selection]:
    """Decide which rows are used.

    Args:
        counts: Rows of each source.
        weights: Relative share of each source in the mix; every row is used when None. No row is used twice: the
            scarcest source, by its weight, is used whole.
        max_rows: Use only this many rows altogether, in the proportion of the mix.
        validation_share: Share of the used rows to hold out, from each source alike; at least one row altogether.
        seed: Decides the choice.

    Returns:
        A selection for each source.

    Raises:
        DataError: Fewer than two rows are left.
    """
    used = shares(counts, weights, max_rows)
    if sum(used) < 2:
        raise DataError.single(
            "data.source",
            f"{sum(used)} row" + ("s" if sum(used) != 1 else ""),
            "cannot be split into training and held-out rows.",
            "Give at least two; a .txt file is cut into rows by data.sample_by.",
        )
    for source, use in enumerate(used):
        if use == 0:
            logger.warning("No row of source %d is used: its weight beside the others leaves it none", source)
    wanted = min(max(1, round(sum(used) * validation_share)), sum(used) - 1)
    held_out = _apportioned(wanted, used)
    return [
        Selection(
            seed,
            source,
            count,
            use,
            hold,
            last_held_out=_nth_rank(seed, source, count, hold),
            last_used=_nth_rank(seed, source, count, use),
        )
        for source, (count, use, hold) in enumerate(zip(counts, used, held_out, strict=True))
    ]


def shares(counts: Sequence[int], weights: Sequence[float] | None, max_rows: int | None) -> list[int]:
    """How many rows of each source are used."""
    used = list(counts)
    if weights is not None:
        size = min(count / weight for count, weight in zip(counts, weights, strict=True))
        used = [min(count, round(size * weight)) for count, weight in zip(counts, weights, strict=True)]
    return used if max_rows is None or max_rows >= sum(used) else _apportioned(max_rows, used)


def _apportioned(total: int, among: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total` in a proportion: rounded down, and up where the remainder is largest."""
    exact = [total * part / sum(among) for part in among]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _ranks(seed: int, source: int, start: int, count: int) -> "npt.NDArray[np.uint64]":
    """A random number for each row that depends on nothing but seed, source and position."""
    import numpy as np

    before = start % _WORDS
    generator = np.random.Philox(key=[seed, source]).advance(start // _WORDS)
    raw: npt.NDArray[np.uint64] = generator.random_raw(before + count)
    return raw[before:]


def _nth_rank(seed: int, source: int, count: int, nth: int) -> int:
    """The `nth` lowest rank of a source, found in two passes over ranks that are never all in memory."""
    import numpy as np

    if nth == 0:
        return 0
    chunks = [(start, min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)]
    histogram = np.zeros(1 << 16, dtype=np.int64)
    for start, size in chunks:
        high = (_ranks(seed, source, start, size) >> np.uint64(48)).astype(np.int64)
        histogram += np.bincount(high, minlength=1 << 16)
    below = np.cumsum(histogram)
    interval = int(np.searchsorted(below, nth))
    candidates = []
    for start, size in chunks:
        ranks = _ranks(seed, source, start, size)
        candidates.append(ranks[(ranks >> np.uint64(48)) == np.uint64(interval)])
    in_order = np.sort(np.concatenate(candidates))
    return int(in_order[nth - 1 - (int(below[interval - 1]) if interval else 0)])

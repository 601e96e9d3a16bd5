"""Which rows of each source are used: decided by seed and position, without keeping anything in memory."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from thriftune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from thriftune.config import DataConfig

    Ranks = npt.NDArray[np.uint64]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
_ROUNDING = 1e-9  # of shares that are whole numbers of rows
_WORDS = 4  # Philox generates four numbers at a time


@dataclass(frozen=True)
class Selection:
    """Which rows of one source are used.

    Attributes:
        seed: Seed of the run.
        source: Index of the source.
        count: Number of its rows.
        used: Number of its used rows.
        last_used: Highest rank of a used row.
    """

    seed: int
    source: int
    count: int
    used: int
    last_used: int

    def uses(self, start: int, count: int) -> "npt.NDArray[np.bool_]":
        """Whether each of `count` rows from row `start` on (counted from 0) is used. Shape [count]."""
        import numpy as np

        if not self.used:
            return np.zeros(count, dtype=np.bool_)
        is_used: npt.NDArray[np.bool_] = _ranks(self.seed, self.source, start, count) <= self.last_used
        return is_used

    def ranks(self) -> Iterator["Ranks"]:
        """The ranks of the used rows, in order, in arrays of bounded size."""
        for ranks in _all_ranks(self.seed, self.source, self.count):
            yield ranks[ranks <= self.last_used] if self.used else ranks[:0]


@dataclass(frozen=True)
class Mix:
    """In which proportion rows of several sources are used; the default is every row.

    Attributes:
        weights: Relative share of each source in the mix; if None, every row is used. No row is used twice: the
            scarcest source, by its weight, is used completely.
        max_rows: Use only this many rows in total, in the proportion of the mix.
        replayed: Rows of the last source for each row of the others, which have the weights; None if it is like them.
    """

    weights: Sequence[float] | None = None
    max_rows: int | None = None
    replayed: float | None = None

    @classmethod
    def of(cls, data: "DataConfig") -> Self:
        """The mix of a run.

        Args:
            data: The data section of the run.
        """
        weights = [source.weight for source in data.sources if source.weight is not None]
        # The share is of the training rows: of the rows of the task, some are held out.
        replayed = data.replay.share / (1 - data.replay.share) * (1 - data.validation_share) if data.replay else None
        return cls(weights or None, data.max_rows, replayed)


def select(counts: Sequence[int], mix: Mix, *, seed: int) -> list[Selection]:
    """Decide which rows are used.

    Args:
        counts: Number of rows of each source.
        mix: Their proportion.
        seed: Decides the choice.

    Returns:
        A selection for each source.

    Raises:
        DataError: Fewer than two rows are left.
    """
    used = shares(counts, mix)
    if sum(used) < 2:
        raise too_few(f"{sum(used)} row" + ("s" if sum(used) != 1 else ""))
    for source, use in enumerate(used):
        if use == 0:
            logger.warning("No row of source %d is used: its share is too small compared with the others", source)
    if left_out := rows_for_lack_of_replay(counts, mix):
        logger.warning("%d rows are not used: too few replayed rows for them (data.replay.share)", left_out)
    return [
        Selection(seed, source, count, use, nth_lowest(partial(_all_ranks, seed, source, count), use))
        for source, (count, use) in enumerate(zip(counts, used, strict=True))
    ]


def too_few(found: str) -> DataError:
    """The error for data that cannot be split.

    Args:
        found: The rows there are, in words.
    """
    return DataError.single(
        "data.source",
        found,
        "cannot be split into training and held-out rows.",
        "Give at least two that differ. A .txt file is cut into rows by data.sample_by; JSON with all values of a "
        "column under its name, or all rows under one key, is one row: write an object for each row.",
        code="too-few-rows",
    )


def shares(counts: Sequence[int], mix: Mix) -> list[int]:
    """Number of used rows of each source.

    Args:
        counts: Number of its rows.
        mix: Their proportion.
    """
    if mix.replayed is None:
        return _weighted(counts, mix.weights, mix.max_rows)
    *of_task, available = counts
    limits = [available / mix.replayed]
    if mix.max_rows is not None:
        limits.append(mix.max_rows / (1 + mix.replayed))
    used = _weighted(of_task, mix.weights, math.floor(min(limits) + _ROUNDING))
    return [*used, min(available, round(sum(used) * mix.replayed))]


def rows_for_lack_of_replay(counts: Sequence[int], mix: Mix) -> int:
    """Number of rows that are not used because there are too few replayed rows beside them.

    Args:
        counts: Number of rows of each source.
        mix: Their proportion.
    """
    if mix.replayed is None:
        return 0
    plenty = shares([*counts[:-1], math.ceil(sum(counts) * mix.replayed) + 1], mix)
    return sum(plenty[:-1]) - sum(shares(counts, mix)[:-1])


def _weighted(counts: Sequence[int], weights: Sequence[float] | None, max_rows: int | None) -> list[int]:
    used = list(counts)
    if weights is not None:
        size = min(count / weight for count, weight in zip(counts, weights, strict=True))
        used = [min(count, round(size * weight)) for count, weight in zip(counts, weights, strict=True)]
    return used if max_rows is None or max_rows >= sum(used) else _apportioned(max_rows, used)


def held_out_shares(unique: Sequence[int], share: float) -> list[int]:
    """Number of distinct rows of each source to hold out: the same share of each, at least one in total, never all.

    Args:
        unique: Number of distinct rows of each source, at least two in total.
        share: Share of them to hold out.
    """
    return _apportioned(min(max(1, round(sum(unique) * share)), sum(unique) - 1), unique)


def nth_lowest(chunks: Callable[[], Iterator["Ranks"]], nth: int) -> int:
    """The `nth` lowest rank, found in two passes over ranks that are never all in memory; 0 if `nth` is 0.

    Args:
        chunks: Iterates over all ranks in arrays of bounded size, each time it is called.
        nth: Counted from 1.
    """
    import numpy as np

    if nth == 0:
        return 0
    histogram = np.zeros(1 << 16, dtype=np.int64)
    for ranks in chunks():
        histogram += np.bincount((ranks >> np.uint64(48)).astype(np.int64), minlength=1 << 16)
    below = np.cumsum(histogram)
    interval = int(np.searchsorted(below, nth))
    candidates = [ranks[(ranks >> np.uint64(48)) == np.uint64(interval)] for ranks in chunks()]
    in_order = np.sort(np.concatenate(candidates))
    return int(in_order[nth - 1 - (int(below[interval - 1]) if interval else 0)])


def _apportioned(total: int, among: Sequence[int]) -> list[int]:
    """Whole numbers in a proportion that add up to `total`: rounded down, or up where the remainders are largest."""
    exact = [total * part / sum(among) for part in among]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _all_ranks(seed: int, source: int, count: int) -> Iterator["Ranks"]:
    """The ranks of all rows of a source, in order, in arrays of bounded size."""
    for start in range(0, count, _CHUNK):
        yield _ranks(seed, source, start, min(_CHUNK, count - start))


def _ranks(seed: int, source: int, start: int, count: int) -> "Ranks":
    """A random number for each row that depends only on seed, source and position."""
    import numpy as np

    before = start % _WORDS
    generator = np.random.Philox(key=[seed, source]).advance(start // _WORDS)
    raw: Ranks = generator.random_raw(before + count)
    return raw[before:]

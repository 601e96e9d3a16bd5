"""Which rows are used and held out: exact numbers, no row twice, decided by nothing but seed and position."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from thriftune.data.selection import Fate, select, shares
from thriftune.errors import DataError

# A busy machine is slow at times.
checked = settings(deadline=None)

counts_of_sources = st.lists(st.integers(1, 200), min_size=1, max_size=4)


def fates_of(selection):
    return selection.fates(0, selection.count)


def numbers(selection):
    """How many rows are unused, train and are held out."""
    return tuple(int((fates_of(selection) == fate).sum()) for fate in Fate)


@checked
@given(
    counts=counts_of_sources,
    share=st.floats(0.001, 0.999),
    max_rows=st.none() | st.integers(2, 900),
    seed=st.integers(0, 2**32),
)
def test_the_fates_are_as_many_as_were_announced_and_add_up(counts, share, max_rows, seed):
    assume(sum(counts) >= 2)
    selections = select(counts, max_rows=max_rows, validation_share=share, seed=seed)
    for selection, count in zip(selections, counts, strict=True):
        assert numbers(selection) == (count - selection.used, selection.used - selection.held_out, selection.held_out)
    used = sum(selection.used for selection in selections)
    assert used == min(sum(counts), max_rows or sum(counts))
    assert sum(s.held_out for s in selections) == min(max(1, round(used * share)), used - 1)


@checked
@given(st.integers(2, 200), st.data())
def test_a_row_has_the_same_fate_however_its_source_is_read(count, data):
    selection = select([7, count], max_rows=9 * count // 10 + 2, validation_share=0.3, seed=3)[1]
    whole = fates_of(selection).tolist()
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=5))})
    parts = [selection.fates(start, end - start).tolist() for start, end in pairwise(cuts)]
    assert [fate for part in parts for fate in part] == whole


def test_the_same_seed_gives_the_same_rows_and_another_seed_and_another_source_give_others():
    def held_out(seed, source=0):
        selection = select([100, 100], validation_share=0.1, seed=seed)[source]
        return tuple(np.flatnonzero(fates_of(selection) == Fate.HELD_OUT).tolist())

    choices = [held_out(seed, source) for seed in range(5) for source in (0, 1)]
    assert {len(choice) for choice in choices} == {10}
    assert len(set(choices)) == 10
    assert held_out(3) == held_out(3)


def test_held_out_rows_lie_all_over_the_source():
    """A split by position holds out what a file ends with: often one topic, or one day."""
    chosen = np.flatnonzero(fates_of(select([10_000], validation_share=0.1, seed=0)[0]) == Fate.HELD_OUT)
    per_tenth = np.bincount(chosen // 1000, minlength=10)
    assert per_tenth.sum() == 1000
    assert (abs(per_tenth - 100) < 40).all()


def test_fewer_rows_are_part_of_more_rows_with_the_same_seed():
    def used(max_rows):
        return set(np.flatnonzero(fates_of(select([300], max_rows=max_rows, validation_share=0.1, seed=1)[0])))

    assert used(50) < used(100) < used(300)


def test_a_selection_over_several_chunks_of_ranks_is_exact():
    """More rows than the ranks that are looked at at once, 2**18: the last of them must be found over all chunks."""
    count = 2**19 + 12_345
    (selection,) = select([count], max_rows=400_001, validation_share=0.25, seed=5)
    assert numbers(selection) == (count - 400_001, 300_001, 100_000)
    border = slice(2**18 - 3, 2**18 + 3)
    assert selection.fates(border.start, 6).tolist() == fates_of(selection)[border].tolist()


@checked
@given(counts=counts_of_sources, data=st.data())
def test_weights_are_kept_without_using_a_row_twice(counts, data):
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(counts), max_size=len(counts)))
    used = shares(counts, weights, None)
    assert all(0 <= use <= count for use, count in zip(used, counts, strict=True))
    assert any(use == count for use, count in zip(used, counts, strict=True)), "no source is used whole"
    size = min(count / weight for count, weight in zip(counts, weights, strict=True))
    assert all(abs(use - size * weight) <= 0.5 + 1e-6 for use, weight in zip(used, weights, strict=True))


@pytest.mark.parametrize(
    ("counts", "weights", "max_rows", "used"),
    [
        ([10, 20], None, None, [10, 20]),
        ([10, 20], None, 100, [10, 20]),
        ([10, 20], None, 6, [2, 4]),
        ([100, 100], [3, 1], None, [100, 33]),
        ([100, 10], [3, 1], None, [30, 10]),
        ([100, 10], [0.3, 0.1], 8, [6, 2]),
        ([5, 5, 5], None, 7, [3, 2, 2]),
        ([1000, 1], None, 10, [10, 0]),
    ],
)
def test_the_mix_is_the_one_worked_out_by_hand(counts, weights, max_rows, used):
    assert shares(counts, weights, max_rows) == used


@checked
@given(counts=counts_of_sources, max_rows=st.integers(0, 1000))
def test_max_rows_keeps_the_proportion_to_within_a_row(counts, max_rows):
    used = shares(counts, None, max_rows)
    total = min(max_rows, sum(counts))
    assert sum(used) == total
    for use, count in zip(used, counts, strict=True):
        assert use <= count
        assert abs(use - total * count / sum(counts)) < 1


def test_the_share_is_held_out_of_each_source_alike():
    selections = select([1000, 200, 100], validation_share=0.1, seed=0)
    assert [selection.held_out for selection in selections] == [100, 20, 10]


def test_one_row_is_held_out_and_one_trains_at_the_least():
    assert numbers(select([1000], validation_share=1e-6, seed=0)[0]) == (0, 999, 1)
    assert numbers(select([1000], validation_share=0.99999, seed=0)[0]) == (0, 1, 999)
    assert numbers(select([2], validation_share=0.5, seed=0)[0]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("counts", "max_rows", "weights"), [([1], None, None), ([0], None, None), ([10], 1, None), ([1, 9], None, [1, 0.1])]
)
def test_fewer_than_two_rows_cannot_be_split(counts, max_rows, weights):
    with pytest.raises(DataError, match=r"data\.source = (1 row|0 rows): cannot be split into training and held-out"):
        select(counts, weights=weights, max_rows=max_rows, validation_share=0.5, seed=0)

"""Which rows are used: exact numbers, no row twice, decided by nothing but seed and position."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from thriftune.data.selection import Mix, held_out_shares, nth_lowest, rows_for_lack_of_replay, select, shares
from thriftune.errors import DataError

# A busy machine is slow at times.
checked = settings(deadline=None)

counts_of_sources = st.lists(st.integers(1, 200), min_size=1, max_size=4)


def used_of(selection):
    """The positions of its used rows."""
    return np.flatnonzero(selection.uses(0, selection.count)).tolist()


@checked
@given(counts=counts_of_sources, max_rows=st.none() | st.integers(2, 900), seed=st.integers(0, 2**32))
def test_as_many_rows_are_used_as_were_announced(counts, max_rows, seed):
    assume(sum(counts) >= 2)
    selections = select(counts, Mix(max_rows=max_rows), seed=seed)
    for selection in selections:
        assert len(used_of(selection)) == selection.used == sum(len(ranks) for ranks in selection.ranks())
    assert sum(selection.used for selection in selections) == min(sum(counts), max_rows or sum(counts))


@checked
@given(st.integers(2, 200), st.data())
def test_a_row_is_used_or_not_however_its_source_is_read(count, data):
    selection = select([7, count], Mix(max_rows=9 * count // 10 + 2), seed=3)[1]
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=5))})
    parts = [selection.uses(start, end - start).tolist() for start, end in pairwise(cuts)]
    assert [used for part in parts for used in part] == selection.uses(0, count).tolist()


def test_the_same_seed_gives_the_same_rows_and_another_seed_and_another_source_give_others():
    def used(seed, source=0):
        return tuple(used_of(select([100, 100], Mix(max_rows=20), seed=seed)[source]))

    choices = [used(seed, source) for seed in range(5) for source in (0, 1)]
    assert {len(choice) for choice in choices} == {10}
    assert len(set(choices)) == 10
    assert used(3) == used(3)


def test_used_rows_lie_all_over_the_source():
    """A choice by position takes what a file begins with: often one topic, or one day."""
    chosen = np.array(used_of(select([10_000], Mix(max_rows=1000), seed=0)[0]))
    per_tenth = np.bincount(chosen // 1000, minlength=10)
    assert per_tenth.sum() == 1000
    assert (abs(per_tenth - 100) < 40).all()


def test_fewer_rows_are_part_of_more_rows_with_the_same_seed():
    def used(max_rows):
        return set(used_of(select([300], Mix(max_rows=max_rows), seed=1)[0]))

    assert used(50) < used(100) < used(300)


def test_a_selection_over_several_chunks_of_ranks_is_exact():
    """More rows than the ranks that are looked at at once, 2**18: the last of them must be found over all chunks."""
    count = 2**19 + 12_345
    (selection,) = select([count], Mix(max_rows=400_001), seed=5)
    used = selection.uses(0, count)
    assert used.sum() == sum(len(ranks) for ranks in selection.ranks()) == 400_001
    border = slice(2**18 - 3, 2**18 + 3)
    assert selection.uses(border.start, 6).tolist() == used[border].tolist()


@checked
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=20), max_size=4), st.data())
def test_the_nth_lowest_rank_is_that_of_all_of_them_in_order(chunks, data):
    in_order = sorted(rank for chunk in chunks for rank in chunk)
    nth = data.draw(st.integers(0, len(in_order)))
    found = nth_lowest(lambda: (np.array(chunk, dtype=np.uint64) for chunk in chunks), nth)
    assert found == ([0, *in_order][nth])


@checked
@given(counts=counts_of_sources, data=st.data())
def test_weights_are_kept_without_using_a_row_twice(counts, data):
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(counts), max_size=len(counts)))
    used = shares(counts, Mix(weights))
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
    assert shares(counts, Mix(weights, max_rows)) == used


@checked
@given(counts=counts_of_sources, max_rows=st.integers(0, 1000))
def test_max_rows_keeps_the_proportion_to_within_a_row(counts, max_rows):
    used = shares(counts, Mix(max_rows=max_rows))
    total = min(max_rows, sum(counts))
    assert sum(used) == total
    for use, count in zip(used, counts, strict=True):
        assert use <= count
        assert abs(use - total * count / sum(counts)) < 1


@pytest.mark.parametrize(
    ("unique", "share", "held_out"),
    [
        ([1000, 200, 100], 0.1, [100, 20, 10]),
        ([200], 0.05, [10]),
        ([1000], 1e-6, [1]),
        ([1000], 0.99999, [999]),
        ([2], 0.5, [1]),
        ([0, 2, 0], 0.5, [0, 1, 0]),
        ([1, 1], 0.001, [1, 0]),
    ],
)
def test_the_share_is_held_out_of_each_source_alike_one_at_the_least_and_never_all(unique, share, held_out):
    assert held_out_shares(unique, share) == held_out


@pytest.mark.parametrize(
    ("counts", "max_rows", "weights"), [([1], None, None), ([0], None, None), ([10], 1, None), ([1, 9], None, [1, 0.1])]
)
def test_fewer_than_two_rows_cannot_be_split(counts, max_rows, weights):
    with pytest.raises(DataError, match=r"data\.source = (1 row|0 rows): cannot be split into training and held-out"):
        select(counts, Mix(weights, max_rows), seed=0)


@pytest.mark.parametrize(
    ("counts", "weights", "max_rows", "used"),
    [
        ([100, 900], None, None, [100, 25]),
        ([100, 10], None, None, [40, 10]),
        ([60, 100, 900], [1, 1], None, [60, 60, 30]),
        ([1000, 900], None, 125, [100, 25]),
        ([1000, 10], None, 125, [40, 10]),
    ],
)
def test_replayed_rows_have_their_share_of_the_training_rows(counts, weights, max_rows, used):
    of_a_fifth = 0.25  # to each row of the task, where none is held out
    assert shares(counts, Mix(weights, max_rows, of_a_fifth)) == used


def test_rows_without_enough_replayed_ones_are_counted():
    assert rows_for_lack_of_replay([100, 10], Mix(replayed=0.25)) == 60
    assert rows_for_lack_of_replay([100, 25], Mix(replayed=0.25)) == 0
    assert rows_for_lack_of_replay([100, 10], Mix()) == 0

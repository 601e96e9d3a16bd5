"""Best-fit decreasing: no item lost, no bin too full, and as good as the heuristic written out plainly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftune.data.packing import pack

# A busy machine is slow at times.
checked = settings(deadline=None)

CAPACITY = 30
lengths_of_items = st.lists(st.integers(1, CAPACITY), max_size=80)


def packed(lengths, capacity=CAPACITY):
    return pack(np.array(lengths, dtype=np.int64), capacity)


def loads(bins, lengths):
    return sorted(sum(lengths[item] for item in items) for items in bins)


def best_fit_decreasing(lengths, capacity):
    """The definition, in quadratic time: loads of the bins."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, load in enumerate(bins) if load + length <= capacity]
        if fitting:
            bins[max(fitting, key=bins.__getitem__)] += length
        else:
            bins.append(length)
    return sorted(bins)


def fewest_bins(lengths, capacity, bins=()):
    """The best packing, by trying all of them."""
    if not lengths:
        return len(bins)
    first, *rest = lengths
    options = [fewest_bins(rest, capacity, (*bins, first))]
    for i, load in enumerate(bins):
        if load + first <= capacity:
            options.append(fewest_bins(rest, capacity, (*bins[:i], load + first, *bins[i + 1 :])))
    return min(options)


@checked
@given(lengths_of_items)
def test_every_item_is_in_one_bin_and_no_bin_is_too_full(lengths):
    bins = packed(lengths)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(items for items in bins)
    assert all(load <= CAPACITY for load in loads(bins, lengths))


@checked
@given(lengths_of_items)
def test_the_bins_are_as_full_as_by_the_definition(lengths):
    assert loads(packed(lengths), lengths) == best_fit_decreasing(lengths, CAPACITY)


@checked
@given(lengths_of_items)
def test_no_two_bins_would_fit_into_one(lengths):
    bins = packed(lengths)
    assert len([load for load in loads(bins, lengths) if load <= CAPACITY // 2]) <= 1
    assert -(-sum(lengths) // CAPACITY) <= len(bins) <= 2 * sum(lengths) // CAPACITY + 1


@checked
@given(st.lists(st.integers(1, 10), max_size=7))
def test_there_are_not_more_bins_than_the_bound_of_the_heuristic(lengths):
    best = fewest_bins(lengths, 10)
    assert best <= len(packed(lengths, 10)) <= 11 / 9 * best + 1


def test_a_case_worked_out_by_hand():
    # 7 | 6 | 5 into a third bin, as 3 and 4 are left; 4 into the 4 beside 6; 3 into the 3 beside 7; 2 beside 5.
    assert packed([3, 6, 2, 7, 4, 5], capacity=10) == [[3, 0], [1, 4], [5, 2]]


def test_an_item_goes_where_least_is_left():
    # 8 | 7 | 2 fits into both, and into the bin of the 8 exactly.
    assert packed([2, 7, 8], capacity=10) == [[2, 0], [1]]


def test_items_of_one_length_stay_in_order_so_that_the_same_rows_come_out():
    assert packed([5] * 5, capacity=10) == [[0, 1], [2, 3], [4]]


def test_a_perfect_packing_of_random_cuts_wastes_next_to_nothing():
    generator = np.random.default_rng(0)
    cuts = [np.sort(generator.choice(np.arange(1, 1024), 6, replace=False)) for _ in range(500)]
    lengths = np.concatenate([np.diff([0, *cut, 1024]) for cut in cuts])
    assert lengths.sum() == 500 * 1024
    assert len(pack(generator.permutation(lengths), 1024)) <= 505

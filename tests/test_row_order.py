"""Which rows a step trains on."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from thriftune.training.row_order import ByLength, RowOrder, filler

LENGTHS = [3, 50, 7, 41, 12, 33, 25, 8, 19, 44, 5, 28]


@pytest.mark.parametrize("by_length", [None, ByLength(LENGTHS, 4)])
def test_an_order_depends_on_seed_and_epoch_alone(by_length):
    """transformers' own, by length, draws from the process: a run that went on took other rows than it would have."""
    order = RowOrder(12, 4, seed=1, by_length=by_length)
    torch.manual_seed(1)
    first = list(order)
    torch.manual_seed(2)
    assert list(order) == list(RowOrder(12, 4, seed=1, by_length=by_length)) == first
    assert sorted(first) == list(range(12))
    order.set_epoch(1)
    assert list(order) != first
    assert list(RowOrder(12, 4, seed=2, by_length=by_length)) != first


def test_a_random_order_is_the_one_that_accelerate_would_take():
    from accelerate.data_loader import SeedableRandomSampler

    theirs, ours = SeedableRandomSampler(range(20), data_seed=5), RowOrder(20, 1, seed=5)
    for epoch in range(3):
        theirs.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert list(theirs) == list(ours)


@given(rows=st.integers(1, 200), micro_batch=st.integers(1, 9), ranks=st.integers(1, 9))
def test_whole_micro_batches_for_all_ranks_hold_every_row_once(rows, micro_batch, ranks):
    at_once = ranks * micro_batch
    order = RowOrder(rows, at_once, seed=0)
    indices = list(order)
    assert len(indices) == len(order)
    assert len(indices) % at_once == 0
    assert len(indices) - rows < at_once
    assert sorted(indices[:rows]) == list(range(rows))
    assert set(indices[rows:]) <= {rows}


def test_rows_of_like_length_stand_together():
    lengths = [number % 40 + 1 for number in range(400)]
    order = list(RowOrder(400, 2, seed=0, by_length=ByLength(lengths, 8)))
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[s : s + 8]] for s in range(0, 400, 8))]
    assert sum(spread) / len(spread) < 10


@pytest.mark.parametrize("packed", [False, True])
def test_a_filler_has_no_label_and_fits_the_rows(packed):
    positions, first = ({"position_ids": [[0, 1]]}, {"position_ids": [0]}) if packed else ({}, {})
    rows = Dataset.from_dict({"input_ids": [[5, 6]], "labels": [[-100, 6]], "length": [2], **positions})
    assert rows.add_item(filler(rows, pad=9))[1] == {"input_ids": [9], "labels": [-100], "length": 1, **first}

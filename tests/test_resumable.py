"""The Trainer's own order of rows and its losses."""

import torch

from thriftune.resumable import LengthGrouped

LENGTHS = [3, 50, 7, 41, 12, 33, 25, 8, 19, 44, 5, 28]


def test_an_order_by_length_depends_on_seed_and_epoch_alone():
    """transformers' own draws from the process: a run that went on took other rows than it would have."""
    order = LengthGrouped(LENGTHS, 4, seed=1)
    torch.manual_seed(1)
    first = list(order)
    torch.manual_seed(2)
    assert list(order) == list(LengthGrouped(LENGTHS, 4, seed=1)) == first
    assert sorted(first) == list(range(len(LENGTHS)))
    order.set_epoch(1)
    assert list(order) != first
    assert list(LengthGrouped(LENGTHS, 4, seed=2)) != first


def test_rows_of_like_length_stand_together():
    lengths = [number % 40 + 1 for number in range(400)]
    order = list(LengthGrouped(lengths, 8, seed=0))
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[s : s + 8]] for s in range(0, 400, 8))]
    assert sum(spread) / len(spread) < 10

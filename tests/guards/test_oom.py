"""Fewer rows at a time, and the same rows an optimizer step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftune.errors import UserError
from thriftune.training.guards.oom import halved


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 1), (4, 2)), ((9, 1), (3, 3)), ((7, 1), (1, 7)), ((7, 3), (3, 7)), ((5, 4), (2, 10)), ((2, 3), (1, 6))],
)
def test_the_largest_size_of_at_most_half(before, after):
    assert halved(*before) == after


@given(st.integers(2, 512), st.integers(1, 512))
def test_rows_of_a_step_never_change(micro_batch, accumulation):
    smaller, more = halved(micro_batch, accumulation)
    assert smaller * more == micro_batch * accumulation
    assert 1 <= smaller <= micro_batch // 2


def test_a_single_row_cannot_be_halved():
    with pytest.raises(UserError, match=r"training.micro_batch = 1: a single row does not fit.*data.max_length"):
        halved(1, 16)

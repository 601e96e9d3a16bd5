"""A global batch is cut exactly, or refused with numbers that work."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftune.batching import split_batch
from thriftune.errors import ConfigError

sizes = st.integers(min_value=1, max_value=512)


@given(sizes, st.integers(1, 64), st.integers(1, 64))
def test_a_batch_multiplies_back_or_is_refused(global_batch, micro_batch, world_size):
    try:
        batch = split_batch(global_batch, micro_batch, world_size)
    except ConfigError as error:
        assert global_batch % (micro_batch * world_size)
        remedy = error.problems[0].remedy
        suggested = [int(number) for number in re.findall(r"\d+", remedy)]
        assert suggested
        for number in suggested:
            assert split_batch(number, micro_batch, world_size).global_batch == number
            assert abs(number - global_batch) < micro_batch * world_size
    else:
        assert batch.micro_batch * batch.accumulation * batch.world_size == global_batch
        assert batch.accumulation >= 1


@given(sizes, st.integers(1, 64), st.integers(1, 64))
def test_every_multiple_is_accepted(accumulation, micro_batch, world_size):
    batch = split_batch(accumulation * micro_batch * world_size, micro_batch, world_size)
    assert batch.accumulation == accumulation


def test_the_refusal_names_what_it_multiplied():
    with pytest.raises(ConfigError, match=r"training.global_batch = 10: .*multiple of 8 \(micro_batch 2 x 4 ranks\)"):
        split_batch(10, 2, 4)


def test_a_batch_smaller_than_one_pass_gets_the_only_number_that_works():
    with pytest.raises(ConfigError, match="Use a global_batch of 8, or"):
        split_batch(3, 2, 4)


@pytest.mark.parametrize(
    ("numbers", "field"),
    [((0, 1, 1), "training.global_batch"), ((4, 0, 1), "training.micro_batch"), ((4, 1, -1), "world size")],
)
def test_numbers_below_one_are_refused(numbers, field):
    with pytest.raises(ConfigError, match=f"{field} = -?[01]: must be at least 1"):
        split_batch(*numbers)

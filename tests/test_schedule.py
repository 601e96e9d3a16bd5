"""The learning rate is above 0 in every step, at its peak after warmup, and falls as in transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from thriftune.training.schedule import rate_share

SCHEDULERS = ["constant_with_warmup", "linear", "cosine"]


@given(scheduler=st.sampled_from(SCHEDULERS), total=st.integers(1, 200), data=st.data())
def test_every_step_has_a_rate_and_warmup_rises_to_the_peak(scheduler, total, data):
    """A run of one step, and the first batch of every other, trained at a rate of 0."""
    warmup = data.draw(st.integers(0, total))
    rates = [rate_share(step, scheduler=scheduler, warmup=warmup, total=total) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert warmup == total or rates[warmup] == 1
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_warmup_rises_in_even_parts():
    rates = [rate_share(step, scheduler="linear", warmup=3, total=7) for step in range(8)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_after_warmup_it_is_the_rate_of_transformers(scheduler, warmup):
    total = 11
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        if step >= warmup:
            ours = rate_share(step, scheduler=scheduler, warmup=warmup, total=total)
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()

"""Early stopping across trials: optuna's pruner over the validations, from outcomes alone."""

import math

import pytest
from test_results import TRAINED

from thriftune.config.sweep import HalvingConfig
from thriftune.sweeps import outcome_json
from thriftune.sweeps.halving import Halving, losses_of
from thriftune.sweeps.outcomes import Outcome


@pytest.fixture
def halving():
    return lambda earlier=(), first=1, factor=2: Halving(HalvingConfig(first=first, factor=factor), earlier)


def test_the_first_goes_on_and_a_worse_one_is_stopped_at_the_same_point(halving):
    decides = halving(factor=3)
    assert decides.goes_on(0, [3.0])
    assert not decides.goes_on(1, [3.5])
    assert decides.goes_on(2, [2.0])


def test_nothing_is_decided_between_two_rungs(halving):
    decides = halving(first=2, factor=2)
    assert decides.goes_on(0, [1.0, 1.0])
    assert decides.goes_on(1, [9.0])
    assert not decides.goes_on(1, [9.0, 9.0])
    assert decides.goes_on(2, [0.9, 0.8, 9.0])  # the next rung is at four validations
    assert decides.goes_on(0, [1.0, 1.0, 7.0, 7.0])  # the first there
    assert not decides.goes_on(2, [0.9, 0.8, 9.0, 8.0])


def test_the_same_validations_told_again_change_nothing(halving):
    """A trial that was started again tells of those before it, too."""
    decides = halving()
    for _ in range(3):
        assert decides.goes_on(0, [3.0])
        assert not decides.goes_on(1, [3.5])
    assert not decides.goes_on(1, [3.5, 0.1])  # stopped stays stopped
    assert decides.goes_on(2, [2.9])


def test_a_loss_that_is_no_number_is_stopped(halving):
    assert not halving().goes_on(0, [math.nan])


def test_trials_that_ended_before_are_competitors(halving):
    earlier = [Outcome(7, "stopped", steps=(2,), losses=(1.0,)), Outcome(8, "failed", steps=(2,), losses=(0.5,))]
    assert not halving(earlier).goes_on(0, [1.5])
    assert halving(earlier).goes_on(0, [0.4])
    assert halving().goes_on(0, [1.5])


def test_the_same_outcomes_decide_the_same_whatever_their_order(halving):
    earlier = [Outcome(number, "stopped", steps=(2,), losses=(loss,)) for number, loss in enumerate((3.0, 2.0, 1.0))]
    for loss in (0.9, 1.9, 2.9, 3.9):
        assert halving(earlier).goes_on(9, [loss]) == halving(earlier[::-1]).goes_on(9, [loss])


def test_losses_of_a_trained_trial_leave_out_the_one_before_the_first_step():
    trained = Outcome(0, "trained", "m", TRAINED)
    assert losses_of(trained) == [one.loss for one in TRAINED.validations if one.step > 0]
    assert len(losses_of(trained)) == len(TRAINED.validations) - any(one.step == 0 for one in TRAINED.validations)


def test_an_outcome_survives_as_text():
    for outcome in (
        Outcome(3, "trained", "s3://bucket/model", TRAINED, seconds=1.5),
        Outcome(4, "failed", steps=(2, 4), losses=(1.0, math.inf), error="It failed."),
        Outcome(5, "unknown", is_served=True),
    ):
        assert outcome_json.from_json(outcome_json.to_json(outcome)) == outcome
    lost = outcome_json.from_json(outcome_json.to_json(Outcome(0, "stopped", steps=(1,), losses=(math.nan,))))
    assert math.isnan(lost.losses[0])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', '{"number": 1, "status": "great"}'])
def test_a_text_of_another_version_is_no_outcome(text):
    assert outcome_json.from_json(text) is None

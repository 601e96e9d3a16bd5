"""What a training changes of itself: the rows of an optimizer step stay, and it gives up in time."""

import json

import pytest
from planning import planned

from thriftune.errors import DivergedError, UserError
from thriftune.training.adjustments import MOST_SKIPPED, Adjustments


@pytest.fixture
def plan(run_config):
    return planned(run_config("qlora", training={"global_batch": 8, "micro_batch": 8}))


def test_a_smaller_micro_batch_leaves_the_global_batch_as_it_is(plan):
    changed = Adjustments().after_out_of_memory(plan)
    now = changed.applied_to(plan)
    assert (now.micro_batch, now.accumulation) == (4, 2)
    assert now.batch.global_batch == now.micro_batch * now.accumulation == 8
    assert now.validation_batch == max(1, plan.validation_batch // 2)  # memory may have run out in a validation
    again = changed.after_out_of_memory(now)
    assert again.record(plan.micro_batch).count == 2
    assert (again.record(plan.micro_batch).before, again.record(plan.micro_batch).after) == (8, 2)


def test_memory_that_runs_out_a_third_time_ends_the_run(plan):
    changed = Adjustments(micro_batch=2, accumulation=4, halvings=2)
    with pytest.raises(UserError, match="although it was made smaller 2 times"):
        changed.after_out_of_memory(changed.applied_to(plan))


def test_batches_are_left_out_until_there_are_too_many():
    changed = Adjustments()
    steps = range(1, 10 * MOST_SKIPPED, 10)
    for step in steps:
        changed = changed.after_divergence(step, "The loss is nan.")
    assert changed.skipped_steps == tuple(steps)
    with pytest.raises(DivergedError, match="The batches of steps 1, 11, 21, 31, 41 were skipped before"):
        changed.after_divergence(9, "The loss is nan.")


def test_a_loss_that_diverges_without_its_batch_too_is_laid_to_the_batch_before():
    """The same step was left out again and again, to the same end."""
    changed = Adjustments()
    for _ in range(3):
        changed = changed.after_divergence(8, "The loss is nan.")
    assert changed.skipped_steps == (8, 7, 6)


def test_a_loss_that_diverges_right_after_what_was_left_out_is_laid_to_the_batch_before_that_and_then_to_its_own():
    """A batch whose own loss is fine ruined the weights: the ones after it were left out, one after the other."""
    changed = Adjustments().after_divergence(32, "The loss is nan.")
    ruined_by_31 = changed.after_divergence(33, "The loss is nan.")
    assert ruined_by_31.skipped_steps == (32, 31)
    assert ruined_by_31.after_divergence(33, "The loss is nan.").skipped_steps == (32, 31, 33)
    assert changed.after_divergence(40, "The loss is nan.").skipped_steps == (32, 40)


def test_they_survive_json():
    changed = Adjustments(micro_batch=2, accumulation=4, halvings=1, skipped_steps=(3, 7))
    assert Adjustments.from_json(json.loads(json.dumps(changed.as_json()))) == changed
    assert Adjustments.from_json({}) == Adjustments()


def test_what_a_later_version_changes_too_is_refused_and_not_left_out():
    with pytest.raises(ValueError, match="dropout"):
        Adjustments.from_json({"halvings": 1, "dropout": 0.1})

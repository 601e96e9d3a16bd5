"""Attempts count by what they leave: a training that gets on is never given up, one that gets nowhere twice is."""

import pytest
from checkpointing import save_steps

from thriftune.checkpoints import attempts, layout
from thriftune.checkpoints.errors import NoProgressError
from thriftune.checkpoints.location import Writer

pytest_plugins = ("store_kinds",)


def begin(store, number, execution="run"):
    return attempts.begin(store, Writer(execution, number))


def test_a_training_that_saves_a_checkpoint_in_every_attempt_goes_on_as_long_as_it_takes(local, tmp_path):
    for number in range(9):
        assert begin(local, number) == 10 * number
        save_steps(local, tmp_path / f"{number}", 10 * (number + 1))


def test_one_attempt_without_a_checkpoint_is_forgiven_and_two_in_a_row_are_not(store, tmp_path):
    assert begin(store, 0) == 0
    save_steps(store, tmp_path, 10)
    assert (begin(store, 1), begin(store, 2)) == (10, 10)
    save_steps(store, tmp_path, 20)
    assert (begin(store, 3), begin(store, 4)) == (20, 20)
    with pytest.raises(NoProgressError) as caught:
        begin(store, 5)
    (problem,) = caught.value.problems
    assert problem.message == "attempts 4 and 5 of execution run both ended at the checkpoint of step 20."
    assert (problem.field, problem.value, problem.code) == ("checkpoints", store.prefix, "training-no-progress")


def test_a_training_that_never_saves_anything_has_two_attempts(local):
    begin(local, 0)
    begin(local, 1)
    with pytest.raises(NoProgressError, match="both ended at the first step, without any checkpoint"):
        begin(local, 2)


def test_an_attempt_that_could_not_say_where_it_began_got_nowhere(local, tmp_path):
    """Its pod was killed while it started."""
    begin(local, 0)
    save_steps(local, tmp_path, 10)
    begin(local, 1)
    with pytest.raises(NoProgressError, match="attempts 2 and 3 .* step 10"):
        begin(local, 3)
    save_steps(local, tmp_path, 20)
    assert begin(local, 4) == 20
    begin(local, 5)


def test_nodes_of_a_job_that_say_it_at_different_times_say_the_same(local, tmp_path):
    assert begin(local, 0) == 0
    save_steps(local, tmp_path, 10)
    assert begin(local, 0) == 10, "a second node, late"
    begin(local, 1)
    assert begin(local, 2) == 10, "the first attempt began at 0"


def test_another_execution_has_attempts_of_its_own(local):
    begin(local, 0)
    begin(local, 1)
    assert begin(local, 0, "another") == 0
    assert begin(local, 1, "another") == 0


def test_the_error_of_an_attempt_is_told_where_there_is_no_other(local):
    begin(local, 0)
    begin(local, 1)
    with pytest.raises(NoProgressError, match="The last one: the nodes did not find each other"):
        attempts.require_progress(local, Writer("run", 2), 0, "the nodes did not find each other")


def test_a_damaged_record_of_an_attempt_counts_as_none(local):
    begin(local, 0)
    begin(local, 1)
    local.put_bytes(layout.attempt_name("run", 0), b"{")
    with pytest.raises(NoProgressError):
        begin(local, 2)

"""Attempts count by what they leave: a training that gets on is never given up, one that gets nowhere twice is."""

import json

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
    assert problem.message == (
        "two attempts of execution run in a row ended at the checkpoint of step 20, and this would be the next."
    )
    assert (problem.field, problem.value, problem.code) == ("checkpoints", store.prefix, "training-no-progress")


def test_a_training_that_never_saves_anything_has_two_attempts(local):
    begin(local, 0)
    begin(local, 1)
    with pytest.raises(NoProgressError, match="in a row ended before the first checkpoint"):
        begin(local, 2)


def test_a_pod_that_never_got_so_far_has_not_tried(local, tmp_path):
    """For want of its image: a healthy training was refused after two of them."""
    begin(local, 0)
    save_steps(local, tmp_path / "a", 10)
    for number in (3, 6):
        assert begin(local, number) == 10
    with pytest.raises(NoProgressError):
        begin(local, 7)


def test_a_rollback_that_takes_checkpoints_away_is_no_standstill(local, tmp_path):
    """Attempts began at 0, 100, 90 (after a rollback) and 100; the last was refused."""
    begin(local, 0)
    save_steps(local, tmp_path / "a", 90, 100)
    assert begin(local, 1) == 100
    local.remove(layout.checkpoint_name(100))
    assert begin(local, 2) == 90
    save_steps(local, tmp_path / "b", 100)
    assert begin(local, 3) == 100


def test_a_checkpoint_whose_files_are_gone_is_no_progress_and_hides_none(local, tmp_path):
    save_steps(local, tmp_path / "a", 20)
    begin(local, 0)
    save_steps(local, tmp_path / "b", 40)
    local.remove(f"{layout.checkpoint_name(40)}/files")
    assert begin(local, 1) == 20
    save_steps(local, tmp_path / "c", 25)
    assert begin(local, 2) == 25


def test_where_an_attempt_really_began_counts_and_not_where_its_workers_were_started_again(local, tmp_path):
    writer = Writer("run", 0)
    save_steps(local, tmp_path / "a", 10, 20)
    begin(local, 0)
    attempts.begins_at(local, writer, 10)  # the content of the newest one was damaged
    attempts.begins_at(local, writer, 15)
    assert json.loads(local.get_bytes(layout.attempt_name("run", 0)) or b"") == {"begins_at": 10}


def test_nodes_of_a_job_that_say_it_at_different_times_say_the_same(local, tmp_path):
    assert begin(local, 0) == 0
    save_steps(local, tmp_path, 10)
    assert begin(local, 0) == 10, "a second node, late"
    begin(local, 1)
    assert begin(local, 2) == 10, "the first attempt began at 0"


def test_another_attempt_at_the_dynamic_part_has_attempts_of_its_own(local):
    """Flyte counts them from 0 again, with the same execution."""
    for node in ("n3-0-dn2", "n3-1-dn2"):
        for number in (0, 1):
            assert attempts.begin(local, Writer("run", number, node)) == 0


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
    assert begin(local, 2) == 0

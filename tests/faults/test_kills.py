"""kill -9, of one worker and of everything, at any time: the next one goes on as if nothing had happened."""

import os
import random
import shutil
import signal
import time

import pytest

from faults.comparing import note, require_same_training
from faults.conftest import INTERVAL, METHODS
from faults.job import Plant

FULL = ("zero3", "zero2", "fsdp", "ddp")
# Steps of a run that is killed many times.
_LONG = 60
whole = pytest.mark.faults


def short_for(method, *values):
    """A case that `make test` runs for one method, and `make faults` for all."""
    return [m if m == method else pytest.param(m, marks=whole) for m in values]


_MANY = [pytest.param(method, kills, marks=whole) for method, kills in (("qlora", 20), ("zero3", 20), ("zero2", 5))]


@pytest.mark.parametrize(("method", "kills"), [("qlora", 2), *_MANY])
def test_a_run_killed_at_random_steps_ends_as_if_nobody_had(method, kills, new_run, undisturbed, record):
    sections = {"training": {"max_steps": _LONG}} if kills > 2 else {}
    expected = undisturbed(method, **sections)
    run = new_run(method, **sections)
    chance = random.Random(6)
    outcomes = []
    for _ in range(kills):
        attempt = run.start()
        begun = attempt.until(lambda a=attempt: a.events("begin"))[0]["step"]
        attempt.until_step(min(begun + chance.randint(1, 2 * INTERVAL), expected.outcome.last_step - 1))
        time.sleep(chance.random() * attempt.job.pause)
        outcomes.append(attempt.kill().wait())
        assert run.claims_to_be_finished == []
    outcomes.append(run.finish())
    assert len([o for o in outcomes if o.begins[0] > 0]) >= kills / 2, "most attempts must have resumed"
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 of the whole attempt at a random step", method, outcomes)


@pytest.mark.parametrize("method", short_for("zero3", *FULL))
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=whole)])
def test_a_killed_worker_is_started_again_within_the_attempt(method, rank, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    attempt = run.start()
    attempt.until_step(2 * INTERVAL + 1)
    killed_at = time.time()
    done = max(event["step"] for event in attempt.events("step"))
    (pid,) = {event["pid"] for event in attempt.events("step") if event["rank"] == rank}
    os.kill(pid, signal.SIGKILL)
    outcome = attempt.wait()
    assert outcome.ended == "finished", outcome.log[-4000:]
    first, second = outcome.begins
    assert (first, second) == (0, 2 * INTERVAL)
    require_same_training(expected, run, [outcome])
    note(
        record, f"kill -9 of worker {rank}", method, [outcome],
        faults=1, steps_lost=done - second, seconds=outcome.begun_at[1] - killed_at,
    )  # fmt: skip


@whole
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_while_it_writes_its_result_leaves_nothing_that_claims_to_be_one(
    method, new_run, undisturbed, record
):
    expected = undisturbed(method)
    run = new_run(method)
    killed = run.start([Plant("kill", file="/outputs/result", once=str(run.folder / "killed"))], pause=0.0)
    killed.until((run.folder / "killed").exists)
    outcomes = [killed.kill().wait()]
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish())
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 while the result is written", method, outcomes)


@pytest.mark.parametrize("method", short_for("zero3", *METHODS))
def test_a_run_cut_off_after_its_last_step_only_writes_its_result(method, new_run, undisturbed, record):
    """It trained the steps since the last checkpoint again, or one more than it was to."""
    expected = undisturbed(method)
    run = new_run(method)
    shutil.copytree(expected.run.folder / "store", run.folder / "store")
    run.attempts = list(expected.run.attempts)
    outcome = run.finish()
    assert (outcome.begins, outcome.losses) == ([expected.outcome.last_step], {})
    require_same_training(expected, run, [outcome])
    note(record, "cut off after the last step", method, [expected.outcome, outcome], limit=0)


@whole
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "file", ["store/checkpoints/checkpoint-6/files", "store/checkpoints/checkpoint-6/manifest.json"]
)
def test_a_run_killed_while_it_uploads_goes_on_from_the_checkpoint_before(method, file, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    killed = run.start([Plant("kill", file=file, once=str(run.folder / "killed"))])
    killed.until((run.folder / "killed").exists)
    outcomes = [killed.kill().wait()]
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish())
    assert outcomes[1].begins == [INTERVAL]
    require_same_training(expected, run, outcomes)
    # What was trained while it was uploaded is lost beside the interval.
    note(record, "kill -9 while a checkpoint is uploaded", method, outcomes, limit=INTERVAL + 1)


@whole
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata.tmp"])
def test_a_run_killed_while_its_shards_are_written_goes_on_from_the_checkpoint_before(
    file, new_run, undisturbed, record
):
    expected = undisturbed("fsdp")
    run = new_run("fsdp")
    place = f"written/checkpoint-{2 * INTERVAL}/sharded/{file}"
    killed = run.start([Plant("kill", file=place, once=str(run.folder / "killed"))])
    killed.until((run.folder / "killed").exists)
    outcomes = [killed.kill().wait()]
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish())
    assert outcomes[1].begins == [INTERVAL]
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 while shards are written", "fsdp", outcomes, limit=INTERVAL + 1)


@whole
@pytest.mark.parametrize("method", ["qlora", "zero3"])
def test_an_attempt_that_dies_before_its_first_checkpoint_hides_none_of_those_before(
    method, new_run, undisturbed, record
):
    expected = undisturbed(method)
    run = new_run(method)
    first = run.start()
    first.until_step(2 * INTERVAL + 1)
    outcomes = [first.kill().wait()]
    second = run.start()
    second.until(lambda: second.events("begin"))
    second.kill().wait()
    outcomes.append(run.finish())
    assert outcomes[1].begins == [2 * INTERVAL]
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 twice, the second time before any checkpoint", method, outcomes, faults=2)

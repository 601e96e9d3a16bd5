"""A blob store that refuses writes, is slow, or is gone for one checkpoint, and disks that are full."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from faults.bucket import FaultyBucket
from faults.comparing import note, require_same_training
from faults.conftest import INTERVAL

whole = pytest.mark.faults
METHODS = ("qlora", "zero3")
pytestmark = whole


@pytest.fixture
def bucket() -> Iterator[FaultyBucket]:
    """A store of one test."""
    with FaultyBucket() as server:
        yield server


def stored_steps(bucket: FaultyBucket, prefix: str) -> list[int]:
    """The whole checkpoints that a test's own client sees."""
    import s3fs

    access = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": bucket.endpoint}}
    files = s3fs.S3FileSystem(**access, use_listings_cache=False, skip_instance_cache=True).find(prefix)
    return sorted(int(f.split("checkpoint-")[1].split("/")[0]) for f in files if f.endswith("/manifest.json"))


@pytest.mark.parametrize("method", METHODS)
def test_a_store_that_refuses_writes_for_a_while_costs_nothing(method, bucket, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method, store=bucket.prefix())
    attempt = run.start(environment=bucket.environment)
    attempt.until_step(INTERVAL - 1)
    bucket.refuse("checkpoint-")
    attempt.until(lambda: bucket.refused >= 9)
    bucket.refuse("")
    outcome = attempt.wait()
    assert outcome.ended == "finished", outcome.log[-4000:]
    assert "Trying again in" in outcome.log
    assert stored_steps(bucket, run.prefix)[-1] > 2 * INTERVAL
    require_same_training(expected, run, [outcome])
    note(record, "store refuses writes (503) for a while", method, [outcome], faults=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_slow_store_costs_nothing_and_leaves_out_checkpoints(method, bucket, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method, store=bucket.prefix())
    bucket.delay = 0.4
    attempt = run.start(environment=bucket.environment, pause=0.1)
    attempt.until_step(1)
    outcome = attempt.wait()
    assert outcome.ended == "finished", outcome.log[-4000:]
    assert "Skipping the checkpoint of step" in outcome.log
    require_same_training(expected, run, [outcome])
    note(record, "store takes 0.4 s longer for every write", method, [outcome], faults=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_the_store_did_not_take_is_left_out(method, bucket, new_run, undisturbed, record):
    """It refuses everything of one checkpoint, and the attempt is killed after it."""
    expected = undisturbed(method)
    run = new_run(method, store=bucket.prefix())
    bucket.refuse(f"checkpoint-{2 * INTERVAL}/")
    attempt = run.start(environment=bucket.environment)
    attempt.until_step(2 * INTERVAL + 2)
    outcomes = [attempt.kill().wait()]
    assert bucket.refused
    bucket.refuse("")
    outcomes.append(run.finish(environment=bucket.environment))
    assert outcomes[1].begins == [INTERVAL]
    require_same_training(expected, run, outcomes)
    note(record, "store gone for one checkpoint, then kill -9", method, outcomes, limit=2 * INTERVAL)


@pytest.mark.parametrize("method", METHODS)
def test_a_store_that_never_takes_writes_ends_the_run_with_its_name(method, bucket, new_run, record):
    run = new_run(method, store=bucket.prefix())
    attempt = run.start(environment=bucket.environment)
    attempt.until_step(1)
    bucket.refuse("checkpoint-", "403 Forbidden")
    outcome = attempt.wait()
    assert outcome.ended == "user", (outcome.message, outcome.log[-4000:])
    assert run.prefix in outcome.message
    assert outcome.last_step <= 5 * INTERVAL
    assert run.claims_to_be_finished == []
    note(record, "store forbids writing (403)", method, [outcome], faults=1, result="ends, names the store")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 30 MB."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", tmp_path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("method", METHODS)
def test_a_disk_that_fills_up_ends_the_attempt_and_the_next_goes_on(method, small_disk, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    attempt = run.start(scratch=str(small_disk / "scratch"))
    attempt.until_step(INTERVAL + 1)
    attempt.until((Path(run.prefix) / f"checkpoint-{INTERVAL}" / "manifest.json").exists)
    fill(small_disk)
    outcomes = [attempt.wait()]
    assert outcomes[0].ended == "recoverable", (outcomes[0].message, outcomes[0].log[-4000:])
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish(pause=0.0))
    # Workers that are started again make room first, and may get further.
    assert outcomes[1].begins[0] >= INTERVAL
    require_same_training(expected, run, outcomes)
    note(record, "disk full while a checkpoint is saved", method, outcomes)

"""One attempt at a time writes a training's checkpoints."""

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from checkpointing import content_of, lone_saver, restore, save_steps, write_checkpoint

from thriftune.checkpoints import layout
from thriftune.checkpoints.errors import LeaseError
from thriftune.checkpoints.lease import Lease, Periods, Terms, end, newest, require_held
from thriftune.checkpoints.location import Writer

pytest_plugins = ("store_kinds",)

QUICK = Periods(renew=0.05, expire=0.4, poll=0.05)
MINE, OTHER = Writer("mine"), Writer("other")


def take(store, writer=MINE, patience=0.0, periods=QUICK, *, lingers=False):
    return Lease(store, writer, patience, lingers=lingers, periods=periods)


def holder(store):
    """Who has the lease; None if nobody has."""
    found = newest(store)
    return None if found is None or found.is_released else found.writer


@pytest.fixture
def held(local):
    """A lease that another execution holds, and renews."""
    lease = take(local, OTHER)
    yield lease
    lease.release()


def killed(lease):
    """What a SIGKILL leaves of a lease: nobody renews it, and nobody gave it back."""
    lease._ended.set()
    lease._thread.join()


def test_a_lease_is_taken_at_once_where_there_is_none_and_where_it_was_given_back(store):
    for writer in (MINE, OTHER, MINE):
        lease = take(store, writer)
        assert holder(store) == writer
        lease.release()
        assert holder(store) is None


def test_a_training_that_goes_on_elsewhere_is_not_joined(held, local):
    with pytest.raises(LeaseError) as caught:
        take(local)
    (problem,) = caught.value.problems
    assert problem.message.startswith("execution other (attempt 1) trains the same at this moment")
    assert (problem.value, problem.code) == (local.prefix, "checkpoints-in-use")
    require_held(local, held.terms)


def test_a_lease_that_is_given_back_meanwhile_is_waited_for(held, local):
    """The pod of an aborted execution saves a last checkpoint before it ends."""
    threading.Timer(1.2, held.release).start()
    began = time.monotonic()
    take(local, patience=10).release()
    assert 1 < time.monotonic() - began < 5


def test_a_lease_whose_owner_was_killed_is_taken_over_when_it_has_expired(held, local):
    killed(held)
    began = time.monotonic()
    take(local).release()
    assert QUICK.expire <= time.monotonic() - began < 5


def test_a_lease_whose_owner_was_killed_long_ago_is_taken_over_at_once(held, local):
    """The same run is started again the next day: its GPUs waited for a minute."""
    killed(held)
    content = json.loads(local.get_bytes(held.terms.name) or b"")
    content["renewed"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    local.put_bytes(held.terms.name, json.dumps(content).encode())
    began = time.monotonic()
    take(local, periods=replace(QUICK, expire=60)).release()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_next_process_of_an_execution_does_not_wait_for_the_last_one(local, attempt):
    """A restarted group of workers has the same attempt as the one before."""
    first = take(local, Writer("mine", 0))
    killed(first)
    began = time.monotonic()
    second = take(local, Writer("mine", attempt))
    assert time.monotonic() - began < QUICK.expire
    second.release()


def test_the_pods_of_a_job_may_still_be_ending_when_the_next_attempt_begins(local):
    """The training operator leaves them; one that saves a last checkpoint meanwhile was written over."""
    first = take(local, Writer("mine", 0))
    threading.Timer(1.0, killed, [first]).start()
    began = time.monotonic()
    take(local, Writer("mine", 1), patience=10, lingers=True).release()
    assert 1 < time.monotonic() - began < 5


def test_an_older_attempt_of_an_execution_does_not_take_over_from_a_newer_one(local):
    newer = take(local, Writer("mine", 1))
    with pytest.raises(LeaseError, match=r"execution mine \(attempt 2\)"):
        take(local, Writer("mine", 0))
    newer.release()


def test_who_was_not_heard_of_for_too_long_writes_nothing_any_more(local):
    slow = take(local, OTHER, periods=Periods(renew=1.0, expire=0.3, poll=0.05))
    new = take(local)
    deadline = time.monotonic() + 10
    while slow._thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(LeaseError, match=r"execution mine \(attempt 1\) has taken over"):
        require_held(local, slow.terms)
    slow.release()
    assert holder(local) == MINE, "what it gives back is not the other's"
    require_held(local, new.terms)
    new.release()


def test_of_many_that_want_a_lease_each_has_it_alone(store):
    holding, most = [], []

    def want(number):
        lease = take(store, Writer(f"run-{number}"), patience=60, periods=Periods(renew=1, expire=60, poll=0.05))
        holding.append(number)
        most.append(len(holding))
        require_held(store, lease.terms)
        holding.remove(number)
        lease.release()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5
    assert holder(store) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"execution": "other", "attempt": 0, "renewed": "never"}'])
def test_a_damaged_lease_is_replaced(local, content):
    local.put_bytes(layout.lease_name(7), content)
    lease = take(local)
    assert local.names(layout.LEASES)[-1] == layout.lease_name(8)
    lease.release()


def test_two_that_got_the_same_lease_do_not_both_keep_it(local):
    """From a store that ignores conditions."""
    first = take(local)
    local.put_bytes(first.terms.name, Terms(first.terms.number, OTHER).written())
    with pytest.raises(LeaseError, match="execution other"):
        require_held(local, first.terms)
    first.release()
    assert holder(local) == OTHER


def test_a_store_that_fails_when_a_lease_is_given_back_ends_nothing_and_keeps_nobody_waiting(local, monkeypatch):
    """A training that has its result was failed by it, or held its GPUs while the store was asked again and again."""
    lease = take(local, periods=Periods(renew=60))
    for error in (ValueError("a bug"), OSError("the store is gone")):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(type(local), "_filesystem", fail)
            began = time.monotonic()
            lease.release()
            assert time.monotonic() - began < 5
        lease._ended.clear()
    lease.release()
    assert newest(local).is_released


def test_a_training_is_done_when_who_trained_it_says_so(local):
    lease = take(local)
    lease.release()
    end(local, OTHER, is_done=True)
    assert not newest(local).is_done
    end(local, MINE, is_done=True)
    assert newest(local).is_done
    take(local, OTHER).release()
    assert not newest(local).is_done


def test_an_older_attempt_that_ends_late_gives_back_nothing_of_the_newer_one(local):
    newer = take(local, Writer("mine", 1))
    end(local, Writer("mine", 0), is_done=False)
    assert holder(local) == Writer("mine", 1)
    newer.release()


def test_a_saver_that_lost_its_lease_leaves_the_checkpoint_of_the_new_owner_alone(local, tmp_path):
    """A save that was waiting removed the manifest of the same step, which the new owner had completed."""
    old = take(local, OTHER)
    saver = lone_saver(local, require_held=lambda: require_held(local, old.terms))
    killed(old)
    new = take(local)
    expected = save_steps(local, tmp_path / "new", 100)
    saver.save(write_checkpoint(tmp_path / "old", 1), 100, {})
    assert saver.wait(20)
    with pytest.raises(LeaseError, match="execution mine"):
        saver.save(write_checkpoint(tmp_path / "older", 2), 110, {})
    saver.close()
    restored = restore([local], tmp_path / "restored")
    assert (restored.step, content_of(restored.directory)) == (100, expected[100])
    assert [name for name in local.names() if name.endswith(".problem")] == []
    new.release()

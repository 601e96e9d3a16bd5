"""SIGTERM is remembered while steps are done, and ends at once what has nothing to save; workers tell their agent."""

import os
import signal

import pytest

from tasks import elastic, settings
from thriftune.errors import EndedAtOnceError, PreemptedError, UserError
from thriftune.training.notice import Notice


@pytest.fixture
def notice():
    before = signal.getsignal(signal.SIGTERM)
    listening = Notice.listen_for_sigterm()
    yield listening
    signal.signal(signal.SIGTERM, before)


def tell():
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_has_nothing_to_save_ends_at_once_and_only_once(notice):
    """A second SIGTERM, while the first one's error was on its way, killed the process before it had said why."""
    with pytest.raises(EndedAtOnceError, match="The node is going away"):
        tell()
    assert notice.was_given
    tell()


def test_while_steps_are_done_it_is_remembered(notice):
    notice.wait_for_step()
    tell()
    assert notice.was_given


def test_after_the_last_step_it_ends_at_once_again(notice):
    notice.wait_for_step()
    notice.end_at_once()
    with pytest.raises(EndedAtOnceError):
        tell()


def test_who_no_longer_listens_leaves_the_signal_as_it_was():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        notice = Notice.listen_for_sigterm()
        notice.stop()
        tell()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]
    assert not notice.was_given


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Does a worker's work; gives what it told its agent."""
    told = []
    monkeypatch.setenv(settings._WORDS, str(tmp_path))
    monkeypatch.setattr(elastic, "_tell_agent", told.append)
    monkeypatch.setattr(elastic, "_UNTIL_HEARD_SECONDS", 0.1)
    monkeypatch.setattr(elastic.interruption, "left_to_parent", lambda: None)

    def do(error):
        def work():
            raise error

        with pytest.raises(type(error)):
            elastic.in_worker(work)
        return told

    return do


def test_a_worker_that_its_agent_ends_to_start_it_again_does_not_end_the_attempt(worker):
    """Another worker had died; to say that the node goes away would have given the pod up."""
    assert worker(EndedAtOnceError("told to stop")) == []


def test_a_worker_whose_pod_is_told_to_end_tells_its_agent(worker, tmp_path):
    (tmp_path / elastic._TOLD).touch()
    (told,) = worker(PreemptedError("not begun"))
    assert "going away" in str(told)


@pytest.mark.parametrize("error", [PreemptedError("saved"), UserError([])])
def test_what_no_other_start_would_mend_is_told_always(worker, error):
    assert worker(error) == [error]

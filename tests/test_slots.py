"""Which trial trains on which device, and what the two sides of a trial tell each other."""

import threading

import pytest

from thriftune.errors import PodError
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.slots import Slots, devices_for
from thriftune.sweeps.states import State, page_of
from thriftune.sweeps.words import Said, Words
from thriftune.training.result import Validation


@pytest.mark.parametrize(
    ("visible", "slots", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("0,1,2,3", 2, ["0", "1"]),
        ("5, 7", 2, ["5", "7"]),
        ("GPU-8932f937,MIG-b2f0", 2, ["GPU-8932f937", "MIG-b2f0"]),
        ("3", 4, ["3"]),  # fewer than slots: fewer at a time
        ("2,-1,0", 3, ["2"]),  # CUDA ends there
    ],
)
def test_each_trial_sees_one_of_the_gpus_that_the_node_shows(visible, slots, expected):
    assert devices_for(visible, slots) == expected


@pytest.mark.parametrize("visible", ["", "-1", " , "])
def test_a_node_that_hides_all_gpus_is_refused(visible):
    with pytest.raises(PodError, match="CUDA_VISIBLE_DEVICES"):
        devices_for(visible, 2)


def test_waiting_trials_take_the_devices_that_are_freed():
    slots = Slots([4, 5, 6, 7], ["a", "b"], restarts=1)
    assert [slots.begin(), slots.begin(), slots.begin()] == [(4, "a"), (5, "b"), None]
    slots.leave(5, "failed")
    assert [slots.begin(), slots.begin()] == [(6, "b"), None]
    slots.leave(4, "trained")
    slots.leave(6, "trained")
    assert slots.waiting == (7,)
    assert slots.begin() == (7, "b")
    assert slots.begin() is None


def test_a_trial_that_died_goes_before_those_that_wait_but_not_forever():
    slots = Slots([0, 1], ["a"], restarts=2)
    for _ in range(2):
        assert slots.begin() == (0, "a")
        slots.leave(0, None)
        assert slots.restart(0)
    assert slots.begin() == (0, "a")
    slots.leave(0, None)
    assert not slots.restart(0)
    assert slots.begin() == (1, "a")


def served_by(slots: Slots, faulty: str | None = None, bad: int = -1) -> tuple[dict[int, str], list[int]]:
    """Which device trained each trial, and which trials failed, of a node where all die on one device, or one trial."""
    trained, failed, running = {}, [], {}
    while slots.waiting or running:
        while (given := slots.begin()) is not None:
            running[given[0]] = given[1]
        assert running, "those that wait would wait forever"
        dying = [number for number, device in running.items() if device == faulty or number == bad]
        number = dying[0] if dying else min(running)  # a trial that dies is gone at once, and others train for hours
        device = running.pop(number)
        slots.leave(number, None if dying else "trained")
        if not dying:
            trained[number] = device
        elif not slots.restart(number):
            failed.append(number)
    return trained, failed


@pytest.mark.parametrize("trials", [3, 8, 20])
def test_a_faulty_device_takes_no_trial_with_it(trials, caplog):
    """Freed first, it was given first: all that waited failed on it, while the other two devices trained one each."""
    trained, failed = served_by(Slots(range(trials), ["a", "b", "c"], restarts=3), faulty="b")
    assert failed == []
    assert sorted(trained) == list(range(trials))
    assert set(trained.values()) == {"a", "c"}
    assert "Trial 1 died 2 times on GPU b, and starts again on another one only" in caplog.text
    assert ("GPU b is out of use while another trains" in caplog.text) == (trials > 3)


@pytest.mark.parametrize("devices", [["a", "b", "c"], ["", "", ""], ["a"]])
@pytest.mark.parametrize("restarts", [0, 1, 3, 20])
def test_a_bad_trial_takes_no_device_with_it(devices, restarts):
    trained, failed = served_by(Slots(range(9), devices, restarts), bad=4)
    assert failed == [4]
    assert set(trained.values()) == set(devices)


@pytest.mark.parametrize("devices", [["a"], ["", ""]])
def test_the_only_device_there_is_stays_in_use(devices):
    trained, failed = served_by(Slots(range(4), devices, restarts=2), faulty=devices[0])
    assert (trained, failed) == ({}, [0, 1, 2, 3])


def test_a_device_that_was_suspected_and_trains_is_one_like_the_others():
    slots = Slots(range(3), ["a", "b"], restarts=9)
    assert [slots.begin(), slots.begin()] == [(0, "a"), (1, "b")]
    for _ in range(2):
        slots.leave(0, None)
        slots.restart(0)
        given = slots.begin()
    assert given == (2, "a"), "0 waits for another"
    slots.leave(2, "trained")
    assert slots.begin() is None
    slots.leave(1, "trained")
    assert slots.begin() == (0, "b")


def test_words_reach_the_other_side_whole(tmp_path):
    words = Words(tmp_path / "t0")
    assert words.heard() is None
    assert words.validations() == ((), ())
    words.tell([Validation(2, 10.0, 1.5), Validation(4, 20.0, 1.25)])
    assert Words(tmp_path / "t0").validations() == ((2, 4), (1.5, 1.25))
    words.say(Said(again="it died"))
    assert words.heard() == Said(again="it died")
    words.say(Said(Outcome(0, "failed", error="no")))
    assert words.heard() == Said(Outcome(0, "failed", error="no"))
    words.forget()
    assert words.heard() is None


def test_a_trial_waits_for_the_answer_to_what_it_told_last_and_goes_on_without_one(tmp_path):
    words = Words(tmp_path / "t0")
    assert words.answered(1, seconds=0.1)
    words.answer(1, goes_on=False)
    assert not words.answered(1, seconds=5.0)
    later = threading.Timer(0.2, lambda: words.answer(2, goes_on=False))
    later.start()
    assert not words.answered(2, seconds=20.0)
    assert later.finished.is_set(), "the answer of before is to another question"
    later.join()


def test_the_page_of_a_pack_names_every_trial_and_escapes_what_they_say():
    states = [
        State(0, "trains", (2, 4), (1.5, 1.25), 90.0),
        State(1, "failed <script>", seconds=3.0),
        State(2, "waits"),
    ]
    page = page_of(5, states, {0: "s3://bucket/training.html"})
    assert "Trials of pack 5" in page
    assert "1.2500" in page
    assert "s3://bucket/training.html" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page

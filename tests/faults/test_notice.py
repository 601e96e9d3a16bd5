"""SIGTERM, as a spot market or a drain sends it: nothing is lost, and another attempt goes on."""

import signal
import time

import pytest

from faults.comparing import note, require_same_training
from faults.conftest import INTERVAL, METHODS, STEPS
from faults.job import Plant

whole = pytest.mark.faults
# Far less than the grace period, far more than a checkpoint of the tiny model takes.
_SOON = 20.0


@pytest.mark.parametrize("method", [METHODS[0], *(pytest.param(method, marks=whole) for method in METHODS[1:])])
def test_sigterm_loses_no_step_and_is_tried_again(method, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    attempt = run.start()
    attempt.until_step(INTERVAL + 1)
    told_at = time.time()
    attempt.notify()
    outcomes = [attempt.wait()]
    assert outcomes[0].ended == "recoverable", (outcomes[0].message, outcomes[0].log[-4000:])
    assert "The node is going away" in outcomes[0].message
    assert time.time() - told_at < _SOON
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish(pause=0.0))
    assert outcomes[1].begins == [outcomes[0].last_step]
    require_same_training(expected, run, outcomes)
    note(record, "SIGTERM", method, outcomes, limit=0)


@whole
@pytest.mark.parametrize("method", ["qlora", "zero3"])
def test_sigterm_to_every_process_and_more_than_once_is_the_same(method, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    attempt = run.start()
    attempt.until_step(INTERVAL + 1)
    for _ in range(3):
        attempt.kill(signal.SIGTERM)
        time.sleep(0.05)
    outcomes = [attempt.wait()]
    assert outcomes[0].ended == "recoverable", (outcomes[0].message, outcomes[0].log[-4000:])
    outcomes.append(run.finish(pause=0.0))
    require_same_training(expected, run, outcomes)
    note(record, "SIGTERM three times to every process", method, outcomes, limit=0)


@whole
def test_sigterm_to_one_of_two_nodes_stops_both_and_loses_no_step(new_run, undisturbed, record):
    expected = undisturbed("zero3")
    run = new_run("zero3")
    attempt = run.start(nodes=2)
    attempt.until_step(INTERVAL + 1)
    attempt.notify(node=1)
    outcomes = [attempt.wait()]
    assert {e["outcome"] for e in outcomes[0].events if e["event"] == "end"} == {"recoverable"}, outcomes[0].log[-4000:]
    outcomes.append(run.finish(nodes=2))
    require_same_training(expected, run, outcomes)
    note(record, "SIGTERM to one of two nodes", "zero3", outcomes, limit=0)


@whole
def test_a_node_that_vanishes_is_tried_again(new_run, undisturbed, record):
    expected = undisturbed("zero3")
    run = new_run("zero3")
    attempt = run.start(nodes=2)
    attempt.until_step(INTERVAL + 1)
    attempt.kill_node(1)
    outcomes = [attempt.wait()]
    assert outcomes[0].ended == "recoverable", outcomes[0].log[-4000:]
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish(nodes=2))
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 of one of two nodes", "zero3", outcomes)


@whole
@pytest.mark.parametrize("method", ["qlora", "zero3"])
def test_sigterm_in_the_last_step_ends_the_run_as_finished(method, new_run, undisturbed, record):
    expected = undisturbed(method)
    run = new_run(method)
    attempt = run.start()
    attempt.until_step(expected.outcome.last_step - 1)
    attempt.notify()
    outcomes = [attempt.wait()]
    if outcomes[0].ended == "recoverable":  # it came before the last step had begun
        outcomes.append(run.finish(pause=0.0))
    assert outcomes[-1].ended == "finished", outcomes[-1].log[-4000:]
    require_same_training(expected, run, outcomes)
    note(record, "SIGTERM before the last step", method, outcomes, faults=1, limit=0)


# Each part of an attempt, a step in which it happens, and the step that the next attempt goes on from. What has begun
# is ended: a step, a validation after it, and a checkpoint, after which there is not one step more.
_PARTS = {
    "loading": ("loading", 0, 0),
    "validation before the first step": ("validation", 0, 0),
    "first step": ("step", 1, 1),
    "step in the middle": ("step", 8, 8),
    "validation": ("validation", 10, 10),
    "saving": ("saving", 2 * INTERVAL, 2 * INTERVAL),
    "uploading": ("uploading", 0, None),
    "writing the result": ("result", 0, STEPS),
}
_ALWAYS = [("loading", "qlora"), ("saving", "qlora")]
_REST = [(part, method) for part in _PARTS for method in ("qlora", "zero3", "ddp") if (part, method) not in _ALWAYS]


@pytest.mark.parametrize(
    ("part", "method"), [*_ALWAYS, *(pytest.param(part, method, marks=whole) for part, method in _REST)]
)
def test_sigterm_in_every_part_of_an_attempt_is_tried_again(part, method, new_run, undisturbed, record):
    """While a model was loaded or a result written, a process died without a word, and workers were started again."""
    expected = undisturbed(method)
    run = new_run(method)
    name, step, goes_on_at = _PARTS[part]
    begun = run.folder / "begun"
    attempt = run.start([Plant("pause", step=step, file=name, once=str(begun))], pause=0.0)
    attempt.until(begun.exists)
    told_at = time.time()
    attempt.notify()
    outcomes = [attempt.wait()]
    assert outcomes[0].ended == "recoverable", (outcomes[0].message, outcomes[0].log[-4000:])
    assert "The node is going away" in outcomes[0].message
    assert time.time() - told_at < _SOON
    assert run.claims_to_be_finished == []
    outcomes.append(run.finish(pause=0.0))
    assert outcomes[1].begins == [outcomes[0].last_step if goes_on_at is None else goes_on_at]
    require_same_training(expected, run, outcomes)
    note(record, f"SIGTERM: {part}", method, outcomes, limit=0)

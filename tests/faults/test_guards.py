"""What ends or changes a training from within: no memory, a batch without a loss, a rank that stands still."""

import json
import math

import pytest

from faults.comparing import note, require_same_training
from faults.conftest import INTERVAL, run_config
from faults.job import Plant

METHODS = ("qlora", "zero3", "fsdp", "ddp")
FAULT_AT = 2 * INTERVAL + 2
# Passes of another size add up the same numbers in another order.
TOLERANCE = 1e-4
whole = pytest.mark.faults
pytestmark = whole


def training(**changes):
    """The run's training section, changed."""
    return {"training": {**run_config("zero3")["training"], **changes}}


def begins_of(outcome):
    return [(event["step"], event["micro_batch"]) for event in outcome.events if event["event"] == "begin"
            and event["rank"] == 0]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_memory_that_runs_out_halves_the_micro_batch_and_the_run_goes_on(method, new_run, undisturbed, record):
    # Dropout would draw other numbers for passes of another size.
    sections = {"lora": {"rank": 4, "dropout": 0.0}} if method == "qlora" else {}
    expected = undisturbed(method, **sections)
    run = new_run(method, **sections)
    outcome = run.finish([Plant("memory", step=FAULT_AT, size=2)])
    assert begins_of(outcome) == [(0, 2), (2 * INTERVAL, 1)]
    differences = [abs(loss - expected.outcome.losses[step]) for step, loss in outcome.losses.items()]
    assert max(differences) < TOLERANCE
    halvings = json.loads((run.output / "manifest.json").read_text())["training"]["halvings"]
    assert (halvings["count"], halvings["before"], halvings["after"]) == (1, 2, 1)
    lost = FAULT_AT - 1 - 2 * INTERVAL
    seconds = outcome.begun_at[1] - step_time(outcome, FAULT_AT - 1)
    note(record, "memory runs out in a step", method, [outcome], faults=1, steps_lost=lost, seconds=seconds,
         result="goes on with half the micro batch, losses within 1e-4")  # fmt: skip


def step_time(outcome, step):
    """When a step was first done."""
    return min(event["time"] for event in outcome.events if event["event"] == "step" and event["step"] == step)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_a_loss_stops_the_run_which_names_it(method, new_run, undisturbed, record):
    bad = undisturbed(method).outcome.batches[FAULT_AT][0]
    run = new_run(method)
    outcome = run.start([Plant("nan", file=bad)]).wait()
    assert outcome.ended == "user", (outcome.ended, outcome.message, outcome.log[-4000:])
    assert f"nan at step {FAULT_AT}" in outcome.message
    assert f"of step {FAULT_AT}: " in outcome.log
    assert run.claims_to_be_finished == []
    kept = [p.parent.name for p in (run.folder / "store").rglob("checkpoint-*/manifest.json")]
    assert f"checkpoint-{2 * INTERVAL}" in kept
    note(record, "NaN batch, on_divergence: stop", method, [outcome], faults=1, result="ends, names step and batch")


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_a_loss_is_left_out_where_the_run_may_go_back(method, new_run, undisturbed, record):
    expected = undisturbed(method)
    bad = expected.outcome.batches[FAULT_AT][0]
    run = new_run(method, **training(on_divergence="rollback"))
    outcome = run.finish([Plant("nan", file=bad)])
    assert outcome.begins[:2] == [0, 2 * INTERVAL]
    assert all(math.isfinite(outcome.losses[step]) for step in range(1, expected.outcome.last_step + 1))
    before = {step: loss for step, loss in outcome.losses.items() if step < FAULT_AT}
    assert before == {step: expected.outcome.losses[step] for step in before}
    assert outcome.losses[expected.outcome.last_step] < outcome.losses[1]
    manifest = json.loads((run.output / "manifest.json").read_text())
    assert manifest["training"]["skipped_steps"]
    lost = FAULT_AT - 1 - 2 * INTERVAL
    seconds = outcome.begun_at[1] - step_time(outcome, FAULT_AT - 1)
    note(
        record, "NaN batch, on_divergence: rollback", method, [outcome],
        faults=1, steps_lost=lost, seconds=seconds, result="goes on without the batch",
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_that_stands_still_ends_the_attempt_with_its_stack_and_the_next_goes_on(
    method, new_run, undisturbed, record
):
    expected = undisturbed(method)
    run = new_run(method, **training(stall_timeout=8))
    rank = 0 if method == "qlora" else 1
    stuck = Plant("stall", step=FAULT_AT, rank=rank, once=str(run.folder / "stalled"))
    attempt = run.start([stuck])
    outcomes = [attempt.wait()]
    assert "on_step_begin" in outcomes[0].log, "the stack says where"
    (stalled,) = (event["time"] for event in outcomes[0].events if event["event"] == "stall")
    if method == "qlora":  # nobody starts the process again within the attempt
        outcomes.append(run.finish(pause=0.0))
        seconds = outcomes[1].begun_at[0] - outcomes[1].started_at
        resumed = outcomes[1].begins[0]
    else:
        seconds, resumed = outcomes[0].begun_at[1] - stalled - 8, outcomes[0].begins[1]
    assert resumed == 2 * INTERVAL
    require_same_training(expected, run, outcomes)
    note(record, "a rank stands still", method, outcomes, faults=1, steps_lost=FAULT_AT - 1 - resumed, seconds=seconds)


@pytest.mark.parametrize("method", ["zero3", "zero2"])
def test_gradients_that_overflow_at_any_scale_end_the_run_with_what_to_do(method, new_run, record):
    """DeepSpeed raises an Exception without a name at the first of them, which said nothing of the run file."""
    run = new_run(method, **training(max_steps=60))
    outcome = run.start([Plant("overflow")], pause=0.0, precision="fp16").wait()
    assert outcome.ended == "user", (outcome.ended, outcome.message, outcome.log[-4000:])
    assert "The loss scale was at its floor of 1 for 10 steps" in outcome.message
    assert "training.learning_rate" in outcome.message
    assert run.claims_to_be_finished == []
    note(
        record, "fp16 gradients overflow at any loss scale", method, [outcome], faults=1, result="ends, names the scale"
    )

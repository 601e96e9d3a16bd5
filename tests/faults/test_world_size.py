"""Other numbers of nodes and workers than before: the same global batch, and losses that agree within 1e-5."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from faults.comparing import note
from faults.conftest import INTERVAL, run_config

TOLERANCE = 1e-5
CLOSE = "losses and weights within 1e-5"
SLOWLY = {"training": {**run_config("zero3")["training"], "learning_rate": 1e-3}}
whole = pytest.mark.faults
pytestmark = whole


def require_close(expected, run, outcomes) -> None:
    """Every loss after each resume, and every weight, are nearly those of the run that nobody disturbed."""
    for outcome in outcomes:
        differences = [abs(loss - expected.outcome.losses[step]) for step, loss in outcome.losses.items()]
        assert max(differences) < TOLERANCE, outcome.begins
    mine, other = (load_file(r.output / "model.safetensors") for r in (run, expected.run))
    assert max(float((mine[name] - other[name]).abs().max()) for name in other) < TOLERANCE
    assert run.claims_to_be_finished == [run.output]


@pytest.mark.parametrize("method", ["zero3", "zero2", "fsdp", "ddp"])
def test_two_nodes_then_one_then_two_train_as_two_throughout(method, new_run, undisturbed, record):
    sections = SLOWLY
    expected = undisturbed(method, **sections)
    alone = run_config(method, **sections, hardware={"devices_per_node": 1})
    run = new_run(method, **sections)
    outcomes = []
    for nodes, config in ((2, run.base["config"]), (1, alone)):
        attempt = run.start(nodes=nodes, config=config, pause=0.5)
        begun = attempt.until(lambda a=attempt: a.events("begin"))[0]["step"]
        manifest = Path(attempt.job.here) / f"checkpoint-{begun + INTERVAL}" / "manifest.json"
        attempt.until_step(begun + INTERVAL)
        attempt.until(manifest.exists)
        outcomes.append(attempt.kill().wait())
        assert run.claims_to_be_finished == []
    outcomes.append(run.finish(nodes=2))
    first, second = outcomes[1].begins[0], outcomes[2].begins[0]
    assert 0 < first < second, [o.log[-2000:] for o in outcomes]
    require_close(expected, run, outcomes)
    # What was trained until both nodes' parts were in the store is lost beside the interval.
    note(record, "two nodes, then one, then two", method, outcomes, limit=INTERVAL + 1, result=CLOSE)


@pytest.mark.parametrize("method", ["zero3", "fsdp", "ddp"])
def test_two_workers_then_one_train_as_two_throughout(method, new_run, undisturbed, record):
    sections = SLOWLY
    expected = undisturbed(method, **sections)
    run = new_run(method, **sections)
    attempt = run.start()
    attempt.until_step(INTERVAL + 1)
    outcomes = [attempt.kill().wait()]
    outcomes.append(run.finish(config=run_config(method, **sections, hardware={"devices_per_node": 1})))
    assert outcomes[1].begins == [INTERVAL]
    require_close(expected, run, outcomes)
    note(record, "two workers, then one", method, outcomes, result=CLOSE)

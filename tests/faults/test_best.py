"""The weights of the lowest held-out loss become the result, whatever strategy holds them, and in whichever attempt."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from faults.comparing import note, require_same_training
from faults.conftest import INTERVAL, STEPS, Undisturbed, run_config
from faults.job import Plant
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import held_out_loss

# From here on the model becomes worse.
TURN = Plant("uphill", step=STEPS // 2)
SECTIONS = {
    "training": {**run_config("zero3")["training"], "scheduler": "constant", "keep": "best"},
    "evaluation": {"max_new_tokens": 2, "every_steps": 1},
}


def loss_of(run) -> float:
    """The held-out loss of what a run saved."""
    model = AutoModelForCausalLM.from_pretrained(run.output, dtype=torch.float32).eval()
    rows = load_split(Path(run.base["dataset"]), VALIDATION)
    return held_out_loss(model, load_tokenizer(run.output), rows, batch=4)[0]


@pytest.mark.parametrize("method", ["zero3", pytest.param("zero2", marks=pytest.mark.faults)])
def test_the_weights_of_the_lowest_validation_are_the_result_of_a_run_that_was_killed_after_it(method, new_run, record):
    calm = new_run(method, **SECTIONS)
    expected = Undisturbed(calm.finish([TURN], pause=0.0), calm.weights, calm)
    losses = {validation["step"]: validation["loss"] for validation in calm.held_out["validations"]}
    best = min(losses, key=losses.get)
    assert 0 < best < STEPS - INTERVAL, "it must become worse again, or this says nothing"
    assert calm.held_out["kept_step"] == best
    assert calm.held_out["after"]["loss"] == pytest.approx(losses[best], abs=1e-5)
    assert loss_of(calm) == pytest.approx(losses[best], abs=1e-5)

    run = new_run(method, **SECTIONS)
    attempt = run.start([TURN])
    attempt.until((Path(run.prefix) / f"checkpoint-{best}" / "manifest.json").exists)
    attempt.until_step(best + INTERVAL)
    outcomes = [attempt.kill().wait(), run.finish([TURN], pause=0.0)]
    require_same_training(expected, run, outcomes)
    note(record, "kill -9 after the best validation, keep: best", method, outcomes)

"""Trials that share a node: real processes, the tiny model, the real Trainer.

A process of a trial imports torch and transformers first, which takes most of the time here.
"""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trials import Given, config_of, dataset_of, job_of, keep, pack_of

from thriftune.config import RunConfig
from thriftune.training.fit import Inputs, fit
from thriftune.training.lines import LINES, read

ROOT = Path(__file__).parent.parent
_BEGINNING_S = 240.0
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    return dataset_of(tmp_path_factory.mktemp("trials"), tiny_model_dir, chat_rows_file)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Where local runs write."""
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def given(tiny_model_dir, dataset, outputs):
    def make(*configs: RunConfig, slots: int = 3, halving: str = "") -> Given:
        return Given(pack_of(list(configs), tiny_model_dir, slots), str(tiny_model_dir), str(dataset), halving)

    return make


@pytest.fixture
def alone(tiny_model_dir, dataset, tmp_path):
    """The weights of an adapter that is trained alone, in this process, by the library."""

    def train(config: RunConfig) -> bytes:
        plan = job_of(0, config, tiny_model_dir).plan
        fit(Inputs(config, plan, tiny_model_dir, dataset), tmp_path / f"alone-{config.name}")
        return (tmp_path / f"alone-{config.name}" / WEIGHTS).read_bytes()

    return train


def weights(outcome) -> bytes:
    return (Path(outcome.model) / WEIGHTS).read_bytes()


def lines_of(outputs: Path, number: int) -> list:
    """The lines of all local runs of a trial, in order."""
    files = sorted(outputs.glob(f"sweep-t{number}/*/training/{LINES}"))
    return [line for file in files for line in read(file)]


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + _BEGINNING_S
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_once_saved(outputs: Path, number: int) -> threading.Thread:
    """Kill the process of a trial, as the kernel does, once it has saved a checkpoint."""

    def kill() -> None:
        wait_until(lambda: any(line.kind == "saved" for line in lines_of(outputs, number)))
        wait_until(lambda: list((outputs / "cache").glob("checkpoints-*/checkpoint-2/manifest.json")))
        (process,) = (child for child in multiprocessing.active_children() if child.name == f"trial {number}")
        os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_trials_of_one_node_leave_each_other_alone(given, alone, outputs, caplog, monkeypatch):
    """Three at a time: one is killed, one cannot be trained, one diverges; a freed device takes the one that waits."""
    monkeypatch.setattr(logging.getLogger("thriftune"), "propagate", True)
    caplog.set_level(logging.INFO, "thriftune")
    configs = [
        config_of(0, training={"max_steps": 40}),  # long enough to be killed
        config_of(1, checkpoints={"resume_from": "/nowhere"}),
        config_of(2, training={"learning_rate": 1e30}),
        config_of(3, strategy="ddp"),
    ]
    killing = kill_once_saved(outputs, 0)
    made = given(*configs).train()
    killing.join(1.0)
    assert [outcome.number for outcome in made] == [0, 1, 2, 3]
    assert [outcome.status for outcome in made] == ["trained", "failed", "failed", "trained"], made
    # What was killed went on from its checkpoint, and ends where it would have ended.
    assert "Trial 0 starts again" in caplog.text
    assert "exit -9" in caplog.text
    assert made[0].training.resumed_at >= 2
    assert [line.step for line in lines_of(outputs, 0) if line.kind == "training"][1:] == [made[0].training.resumed_at]
    assert weights(made[0]) == alone(configs[0])
    assert weights(made[3]) == alone(config_of(3))
    # An error is one line, that says what to do.
    assert made[1].error.startswith("checkpoints.resume_from = /nowhere")
    assert "loss is nan at step 2" in made[2].error
    assert not any("\n" in outcome.error for outcome in made)
    assert all(outcome.seconds > 0 for outcome in made)
    # No more than three at a time, and the fourth in place of the first that ended.
    said = dict.fromkeys(record.getMessage() for record in caplog.records)
    began = [message for message in said if "trains on the CPU" in message]
    assert len(began) == 5  # one of them twice
    assert began[3].startswith("Trial 3 ") or began[4].startswith("Trial 3 ")
    # What has its result is found, without a process. Its checkpoints are gone.
    found = given(configs[0], replace_name(configs[3])).train()
    assert [(outcome.status, outcome.is_served) for outcome in found] == [("trained", True)] * 2
    assert [outcome.training.after for outcome in found] == [made[0].training.after, made[3].training.after]
    assert not list((outputs / "cache").glob("checkpoints-*/checkpoint-*"))


def replace_name(config: RunConfig) -> RunConfig:
    """The same trial in another sweep."""
    return config.model_copy(update={"name": "other-t1"})


@pytest.mark.slow
def test_a_pod_that_is_told_to_end_leaves_what_the_next_one_goes_on_with(given, alone, outputs, tmp_path):
    configs = [config_of(0), config_of(1, training={"max_steps": 60}), config_of(2)]
    work = tmp_path / "work"
    keep(given(*configs, slots=2), work)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, str(ROOT / "tests" / "trials.py"), str(work)]
    with (work / "log").open("w") as log:
        pod = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log)
    try:
        wait_until(lambda: any(line.kind == "saved" for line in lines_of(outputs, 1)) or pod.poll() is not None)
        pod.send_signal(signal.SIGTERM)
        pod.wait(60)
    finally:
        if pod.poll() is None:
            pod.kill()
    said = (work / "log").read_text()
    assert pod.returncode == 1, said
    assert "FlyteRecoverableException" in said
    assert "trials have no result yet" in said
    assert not (work / "outcomes.json").exists()
    before = {number: lines_of(outputs, number) for number in range(3)}
    saved = max(line.step for line in before[1] if line.kind == "saved")
    assert before[1][-1].kind == "interrupted"

    made = given(*configs, slots=2).train()
    assert [outcome.status for outcome in made] == ["trained"] * 3
    assert made[1].training.resumed_at == saved
    for number, outcome in enumerate(made):
        finished_before = any(line.kind == "finished" for line in before[number])
        assert outcome.is_served == finished_before
        assert (lines_of(outputs, number) == before[number]) == finished_before
        assert weights(outcome) == alone(configs[number])


@pytest.mark.slow
def test_what_was_stopped_early_is_not_trained_again_and_can_be_continued(given, alone, outputs):
    halving = json.dumps({"first": 1, "factor": 2})
    configs = [config_of(1), config_of(0, training={"learning_rate": 1e-6})]  # one after the other: the second is worse
    made = given(*configs, slots=1, halving=halving).train()
    assert [outcome.status for outcome in made] == ["trained", "stopped"]
    assert made[1].steps == (2,)
    assert made[1].losses[0] > made[0].training.validations[1].loss
    assert any(line.kind == "stopped" for line in lines_of(outputs, 1))
    lines = len(lines_of(outputs, 1))

    again = given(*configs, slots=1, halving=halving).train()
    assert again == [replace(made[0], is_served=True, seconds=again[0].seconds), replace(made[1], is_served=True)]
    assert len(lines_of(outputs, 1)) == lines

    whole = given(*configs, slots=1).train()
    assert [(outcome.status, outcome.is_served) for outcome in whole] == [("trained", True), ("trained", False)]
    assert whole[1].training.resumed_at == 2
    assert weights(whole[1]) == alone(configs[1])


def test_a_trial_that_another_run_of_this_machine_trains_is_refused(tmp_path, outputs):
    from tasks import trial_results
    from thriftune.checkpoints.errors import LeaseError

    with trial_results.held_here("trial-key"):
        with pytest.raises(LeaseError, match="another run on this machine"), trial_results.held_here("trial-key"):
            pass
        with trial_results.held_here("trial-other"):
            pass
    with trial_results.held_here("trial-key"):
        pass

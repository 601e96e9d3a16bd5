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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch as patched

import psutil
import pytest
from bucket import Bucket, set_environment
from flytekit.types.directory import FlyteDirectory
from trials import Given, config_of, dataset_of, in_pod, job_of, keep, leave_temporary_files, pack_of

from tasks import trial_child
from tasks.trial_children import Children, Node
from tasks.trials import train_trial
from thriftune.checkpoints import layout, restoring
from thriftune.config import RunConfig
from thriftune.stores import transfer
from thriftune.stores.store import Store
from thriftune.sweeps import outcome_json
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import Pack
from thriftune.sweeps.slots import NO_GPU
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


@contextmanager
def started(work: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A pack that is trained by a process of its own, whose output is `work`/log."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, str(ROOT / "tests" / "trials.py"), str(work), *arguments]
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_the_temporary_files_of_a_trial_end_with_it(given, tiny_model_dir, dataset, tmp_path, monkeypatch):
    """A pod's trials write their results there: of many on one device, all would be on its disk at the end."""
    monkeypatch.setattr(trial_child, "main", leave_temporary_files)
    jobs = given(config_of(0), config_of(1), slots=1).pack.jobs
    node = Node([NO_GPU], {"m": tiny_model_dir}, {"d": dataset})
    made = Children(jobs, node, None, tmp_path / "words").run()
    places = [Path(outcome.error) for outcome in made]
    assert [place.parent for place in places] == [tmp_path / "words" / f"t{number}" / "tmp" for number in range(2)]
    assert not any(place.parent.exists() for place in places)


def key_of(pack: Pack, number: int) -> str:
    """What a trial is known by, without its generation."""
    return pack.jobs[number].cache_key.removesuffix("-0")


def outcomes_in(work: Path) -> list[Outcome]:
    return [outcome_json.from_json(text) for text in json.loads((work / "outcomes.json").read_text())]


@pytest.fixture
def bucket(tiny_model_dir, dataset):
    """The URL of a bucket that holds the model and the dataset."""
    server, place = Bucket(), f"s3://{Bucket.name}"
    patch = set_environment(server)
    transfer.upload(tiny_model_dir, f"{place}/model", {})
    transfer.upload(dataset, f"{place}/dataset", {})
    yield place
    patch.undo()
    server.stop()


@pytest.mark.slow
def test_a_pod_that_is_told_to_end_leaves_what_the_next_one_goes_on_with(alone, tiny_model_dir, bucket, tmp_path):
    """What one attempt trained is found by the next one. All trials have one seed, and none writes over another."""
    configs = [config_of(0), config_of(1, training={"max_steps": 100}), config_of(2)]
    pack, index = pack_of(configs, tiny_model_dir, slots=2, index=f"{bucket}/results"), Store(f"{bucket}/results")
    given, work = Given(pack, f"{bucket}/model", f"{bucket}/dataset"), tmp_path / "work"
    keep(given, work)
    of_long = Store(f"{bucket}/data/thriftune/p-d/checkpoints/{key_of(pack, 1)}")
    with started(work, "run", "0", bucket) as pod:
        wait_until(lambda: index.names(key_of(pack, 0)) or pod.poll() is not None)
        wait_until(lambda: restoring.complete([of_long]) or pod.poll() is not None)
        pod.send_signal(signal.SIGTERM)
        pod.wait(60)
    said = " ".join((work / "log").read_text().split())
    assert pod.returncode == 1, said
    assert "FlyteRecoverableException" in said
    assert "trials have no result yet" in said
    saved = next(manifest.step for _, manifest in restoring.complete([of_long]))

    with started(work, "run", "1", bucket) as pod:
        assert pod.wait(_BEGINNING_S) == 0, (work / "log").read_text()
    made, said = outcomes_in(work), (work / "log").read_text()
    assert [(outcome.status, outcome.is_served) for outcome in made] == [("trained", False)] * 3
    assert "Trial 0 is not trained again" in said
    assert "[trial 0]" not in said
    assert made[1].training.resumed_at == saved
    assert [Store(outcome.model).get_bytes(WEIGHTS) for outcome in made] == [alone(config) for config in configs]
    assert not restoring.complete([of_long])
    assert b"<html" in of_long.get_bytes(layout.PAGE)

    with patched.dict(os.environ):  # another execution finds all of it, and starts no process
        found = in_pod(given, bucket, "another", "0")
    spent = [outcome.seconds for outcome in found]
    assert found == [replace(one, is_served=True, seconds=own) for one, own in zip(made, spent, strict=True)]


@pytest.mark.slow
def test_an_interrupted_local_run_saves_every_trial_and_names_the_way_on(given, outputs, tmp_path):
    configs = [config_of(number, training={"max_steps": 600}) for number in range(2)]
    work = tmp_path / "work"
    keep(given(*configs), work)
    with started(work, "local", TMPDIR=str(tmp_path)) as run:
        wait_until(lambda: all(lines_of(outputs, number)[-1:] for number in range(2)) or run.poll() is not None)
        kinds = [lambda n=number: any(line.kind == "saved" for line in lines_of(outputs, n)) for number in range(2)]
        wait_until(lambda: all(has() for has in kinds) or run.poll() is not None)
        others = psutil.Process(run.pid).children(recursive=True)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.wait(30)
        assert time.monotonic() - began < 10
    said = (work / "log").read_text().splitlines()
    assert run.returncode == 128 + signal.SIGINT
    assert said[-1].startswith("To go on (of 2 trials those that finished are not trained again, the others resume): ")
    assert not [line for line in said if "Traceback" in line]
    assert sum("The trial ended before its end: PreemptedError: The node is going away" in line for line in said) == 2
    assert not [other for other in others if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    for number in range(2):
        last = [line for line in lines_of(outputs, number) if line.kind in ("step", "saved", "interrupted")]
        assert last[-1].kind == "interrupted"
        done = max(line.step for line in last)
        assert list((outputs / "cache").glob(f"checkpoints-*/checkpoint-{done}/manifest.json"))


@pytest.mark.slow
def test_what_was_stopped_early_is_not_trained_again_and_can_be_continued(given, alone, outputs):
    halving = json.dumps({"first": 1, "factor": 2})
    configs = [config_of(0), config_of(1, training={"learning_rate": 1e-6})]  # one after the other: the second is worse
    made = given(*configs, slots=1, halving=halving).train()
    assert [outcome.status for outcome in made] == ["trained", "stopped"]
    assert made[1].steps == (2,)
    assert made[1].losses[0] > made[0].training.validations[1].loss
    assert any(line.kind == "stopped" for line in lines_of(outputs, 1))
    lines = len(lines_of(outputs, 1))

    again = given(*configs, slots=1, halving=halving).train()
    served = [replace(one, is_served=True, seconds=other.seconds) for one, other in zip(made, again, strict=True)]
    assert again == served
    assert all(0 < other.seconds <= one.seconds for one, other in zip(made, again, strict=True))
    assert len(lines_of(outputs, 1)) == lines

    whole = given(*configs, slots=1).train()
    assert [(outcome.status, outcome.is_served) for outcome in whole] == [("trained", True), ("trained", False)]
    assert whole[1].training.resumed_at == 2
    assert weights(whole[1]) == alone(configs[1])


@pytest.mark.slow
def test_a_trial_over_several_devices_is_trained_once_and_its_error_is_an_outcome(tiny_model_dir, dataset, outputs):
    config = config_of(
        0, "full", hardware={"device": "CPU", "devices_per_node": 2}, strategy="ddp", training={"micro_batch": 2}
    )
    job = job_of(0, config, tiny_model_dir)
    assert job.plan.processes_per_node == 2

    def train(config: RunConfig, key: str) -> Outcome:
        model, rows = FlyteDirectory(str(tiny_model_dir)), FlyteDirectory(str(dataset))
        given = {"config": config, "plan": job.plan, "cache_key": key, "record": ""}
        return train_trial(**given, number=4, model=model, dataset=rows)

    made = train(config, job.cache_key)
    assert (made.number, made.status, made.is_served) == (4, "trained", False)
    assert (Path(made.model) / "model.safetensors").is_file()
    assert made.seconds > 0
    found = train(config, job.cache_key)
    assert found == replace(made, is_served=True, seconds=found.seconds)
    broken = config.model_copy(
        update={"checkpoints": config.checkpoints.model_copy(update={"resume_from": "/nowhere"}), "name": "sweep-t1"}
    )
    failed = train(broken, "trial-other-0")
    assert (failed.number, failed.status) == (4, "failed")
    assert failed.seconds > 0, "its node was paid for"
    assert "checkpoints.resume_from = /nowhere" in failed.error

"""A job of two nodes, registered, uploaded and run as Flyte would, on the tiny model; and the same run again."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from flyteidl.core.catalog_pb2 import CACHE_HIT, CACHE_POPULATED
from test_workflows import FULL, only, pyflyte_run, write_config

from cluster import image
from cluster.conftest import IN_CLUSTER, SECRETS, Pyflyte, done, ended
from cluster.control_plane import ControlPlane
from cluster.description import CLUSTER
from cluster.looking import (
    again_without,
    attempts_of,
    cached,
    inputs_with,
    loss,
    made_anew,
    model_of,
    on_the_plan_s_nodes,
    output,
    pods_of,
    said_anew,
)  # fmt: skip
from cluster.records import Run
from cluster.striking import SAVED, struck, whenever

pytestmark = pytest.mark.slow
TRAINING = {"max_steps": 8}
CHECKPOINTS = {"every_steps": 2}


@pytest.fixture(scope="module")
def libraries() -> tuple[str, ...]:
    return image.OF_TRAINING


@pytest.fixture(scope="module")
def full_run(
    cluster: ControlPlane, pyflyte: Pyflyte, sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    hardware = {"nodes": 2, "devices_per_node": 1}
    folder = tmp_path_factory.mktemp("full")
    config = write_config(folder, "full", *sources, hardware=hardware, training=TRAINING, checkpoints=CHECKPOINTS)
    with whenever(cluster, SAVED, *struck(cluster, signal.SIGKILL)):
        pyflyte("run", "--remote", *IN_CLUSTER, *FULL, "--config", str(config), settings=SECRETS)
    return done(cluster), config


def test_a_job_of_two_nodes_trains_what_a_local_run_trains(full_run, cluster, tiny_model_dir, chat_rows_file, tmp_path):
    """Although a pod of it was killed: the next attempt goes on from its checkpoint, on two nodes again."""
    run, _ = full_run
    assert output(run, "plan")["nodes"] == 2
    assert attempts_of(run)["train_2"] == 2
    assert len(list(cluster.pods.logs.glob(f"{run.name}-*-worker-*.log"))) == 2 * 2
    assert output(run, "metrics")["training"]["resumed_at"] >= CHECKPOINTS["every_steps"]
    ended_well = list(cluster.pods.logs.glob(f"{run.name}-*-1-worker-*.log"))
    assert len(ended_well) == 2
    assert not [log for log in ended_well if "recover this execution" in log.read_text()], "last words of a success"
    local = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file, training=TRAINING)
    pyflyte_run(tmp_path, *FULL, "--config", str(local))
    there = output(run, "metrics")["training"]
    here = json.loads(only(tmp_path, "outputs/tiny/*/metrics.json").read_text())["training"]
    assert there["before"]["loss"] == pytest.approx(here["before"]["loss"], abs=1e-4)
    assert there["after"]["loss"] == pytest.approx(here["after"]["loss"], abs=0.01)
    assert there["after"]["loss"] < there["before"]["loss"] - 0.05
    assert [v["step"] for v in there["validations"]] == [v["step"] for v in here["validations"]]
    saved = only(tmp_path, "outputs/tiny/*/model")
    assert loss(model_of(run, cluster, tmp_path)) == pytest.approx(loss(saved), abs=0.02)


def test_a_job_of_two_nodes_under_fsdp_goes_on_after_a_pod_is_killed(full_run, cluster, pyflyte, sources, tmp_path):
    """Parts of a checkpoint are on both nodes; the next attempt reads them, and trains what ZeRO trains."""
    hardware = {"nodes": 2, "devices_per_node": 1}
    sections = {"hardware": hardware, "training": TRAINING, "checkpoints": CHECKPOINTS, "strategy": "fsdp"}
    config = write_config(tmp_path, "full", *sources, **sections)
    with whenever(cluster, SAVED, *struck(cluster, signal.SIGKILL)):
        pyflyte("run", "--remote", *IN_CLUSTER, *FULL, "--config", str(config), settings=SECRETS)
    run = done(cluster)
    assert (output(run, "plan")["strategy"], output(run, "plan")["nodes"]) == ("fsdp", 2)
    assert attempts_of(run)["train_2"] == 2
    there, by_zero = (output(one, "metrics")["training"] for one in (run, full_run[0]))
    assert there["resumed_at"] >= CHECKPOINTS["every_steps"]
    assert there["before"]["loss"] == pytest.approx(by_zero["before"]["loss"], abs=1e-4)
    assert there["after"]["loss"] == pytest.approx(by_zero["after"]["loss"], abs=0.01)
    saved, by_zero = (loss(model_of(one, cluster, tmp_path / one.name)) for one in (run, full_run[0]))
    assert saved == pytest.approx(by_zero, abs=0.02)


def test_the_run_has_one_set_of_pods_on_the_plan_s_nodes(full_run):
    """There were three: one before and one after the training."""
    assert on_the_plan_s_nodes(full_run[0]) == {"train_2"}


def test_another_price_and_name_are_planned_again_and_ask_for_no_gpu(full_run, cluster, pyflyte, tmp_path):
    """Another name trained again, for hours."""
    first, file_of_run = full_run
    config = tmp_path / "full.yaml"
    config.write_text(file_of_run.read_text().replace("name: tiny", "name: another"))
    file = cluster.store.uri("catalogue.yaml")
    content = cluster.store.get(file)
    cluster.store.put(file, content.replace(b"price_per_hour: 0.1", b"price_per_hour: 0.2"))
    try:
        pyflyte("run", "--remote", *IN_CLUSTER, *FULL, "--config", str(config), settings=SECRETS)
    finally:
        cluster.store.put(file, content)
    again = done(cluster)
    assert output(again, "plan")["price_per_hour"] == pytest.approx(2 * output(first, "plan")["price_per_hour"])
    assert output(again, "metrics")["name"] == "another"
    paid = {run.name: output(run, "metrics")["cost"]["is_of_another_run"] for run in (first, again)}
    assert paid == {first.name: False, again.name: True}
    kept = {key: {CACHE_HIT} for key in ("fetch_model", "prepare_dataset", "train_2")}
    assert cached(again) == {"plan": {CACHE_POPULATED}, **kept}
    assert pods_of(again) == {"pin", "plan", "preflight", "train_on_plan", "summarize"}
    assert again.outputs.literals["model"] == first.outputs.literals["model"]


def test_what_the_platform_lacks_ends_a_run_before_any_gpu(cluster, pyflyte, full_run):
    _, config = full_run
    nowhere = ("--raw-output-data-prefix", "s3://no-such-bucket/results")
    settings = {"THRIFTUNE_HUB_SECRET": "hub/forgotten"}
    result = pyflyte(
        "run", "--remote", *IN_CLUSTER, *nowhere, *FULL, "--config", str(config), settings=settings, check=False
    )
    assert result.returncode != 0
    run = list(cluster.runs.values())[-1]
    message = run.execution.closure.error.message
    assert "[output-not-writable]" in message
    assert "s3://no-such-bucket/results" in message
    assert "THRIFTUNE_HUB_SECRET = hub/forgotten" in message
    assert "[secret-missing]" in message
    assert pods_of(run) <= {"pin", "plan", "preflight"}


def test_other_prompts_and_a_base_model_that_is_gone_train_nothing(full_run, cluster):
    """The model is fetched again; it and the result, on the planned node, answer what the training was not asked."""
    first, _ = full_run
    prompts = ["What colour is a stone on day 9?", "Who are you?"]
    run = again_without(cluster, first, "fetch_model", prompts=prompts)
    assert made_anew(run) == {"fetch_model", "evaluate"}
    assert attempts_of(run) == {"train_on_plan": 1, "fetch_model": 1, "evaluate": 2, "summarize": 1}
    assert said_anew(cluster, run) == 1
    was, now = (output(one, "metrics")["training"] for one in (first, run))
    for when in ("before", "after"):
        assert now[when]["prompts"] == prompts
        assert len(now[when]["answers"]) == 2
        assert (now[when]["loss"], was[when]["prompts"] == prompts) == (was[when]["loss"], False)
    assert run.outputs.literals["model"] == first.outputs.literals["model"]


def test_prepared_rows_that_are_gone_are_prepared_again_and_nothing_else(full_run, cluster):
    run = again_without(cluster, full_run[0], "prepare_dataset")
    assert made_anew(run) == {"prepare_dataset"}
    assert pods_of(run) == {"train_on_plan", "prepare_dataset", "summarize"}
    assert said_anew(cluster, run) == 1


def test_without_flyte_s_plugin_a_job_ends_at_once_and_for_good(full_run, cluster, monkeypatch):
    """It was one pod that waited for the others, for half an hour in each of three attempts."""
    first, _ = full_run
    others = tuple(plugin for plugin in CLUSTER.plugins if plugin != "pytorch")
    monkeypatch.setattr(cluster.pods, "cluster", replace(CLUSTER, plugins=others))
    run = cluster.runs[cluster.run_dynamic_part(first, inputs_with(first, training={"learning_rate": 2e-2}))]
    assert "this pod is in no PyTorchJob" in ended(run).error.message
    assert attempts_of(run) == {"train_on_plan": 1, "train_2": 1}

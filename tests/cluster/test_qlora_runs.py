"""QLoRA in one process, registered, uploaded and run as Flyte would, on the tiny model; and the same run again."""

import re
import shlex
import signal
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from flyteidl.admin.execution_pb2 import ExecutionMetadata
from flyteidl.admin.launch_plan_pb2 import LaunchPlanSpec
from flyteidl.core.catalog_pb2 import CACHE_HIT, CACHE_POPULATED
from flyteidl.core.execution_pb2 import WorkflowExecution
from flytekit.configuration import Config
from flytekit.remote import FlyteRemote
from test_readme import REGISTERING
from test_workflows import QLORA, write_config

from cluster import image
from cluster.conftest import IN_CLUSTER, SECRETS, TOKEN, WANDB_KEY, Pyflyte, done, ended
from cluster.control_plane import ControlPlane
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
from cluster.striking import BEGINS, SAVED, struck, whenever

pytestmark = pytest.mark.slow
CHECKPOINTS = {"every_steps": 2}
# More than Flyte's own three, and than THRIFTUNE_RETRIES.
STRIKES = (signal.SIGTERM, *[signal.SIGKILL] * 5)
ON_GPUS = {"evaluate", "train_in_one_process"}


@pytest.fixture(scope="module")
def libraries() -> tuple[str, ...]:
    return image.OF_TRAINING


@pytest.fixture(scope="module")
def qlora_run(
    cluster: ControlPlane, pyflyte: Pyflyte, sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    """With a hub token and a key of Weights & Biases among the cluster's secrets."""
    overrides = {
        "lora": {"rank": 8, "alpha": 16},
        "data": {"packing": True},
        "training": {
            "optimizer": "paged_adamw_8bit", "max_steps": 60, "global_batch": 4, "micro_batch": 2, "report_to": "wandb"
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("qlora")
    config = write_config(folder, "qlora", *sources, hardware={"nodes": 1}, checkpoints=CHECKPOINTS, **overrides)
    offline = ("--env", "WANDB_MODE=offline")
    with whenever(cluster, SAVED, *struck(cluster, *STRIKES)):
        pyflyte("run", "--remote", *IN_CLUSTER, *offline, *QLORA, "--config", str(config), settings=SECRETS)
    return done(cluster), config


def test_qlora_gives_a_merged_model(qlora_run, cluster, tmp_path):
    """Although it lost its node six times: each time it had got on, and the next attempt went on from there."""
    run, _ = qlora_run
    assert attempts_of(run)["train_in_one_process"] == len(STRIKES) + 1
    metrics = output(run, "metrics")
    assert metrics["training"]["resumed_at"] >= len(STRIKES) * CHECKPOINTS["every_steps"]
    assert metrics["training"]["after"]["loss"] < metrics["training"]["before"]["loss"] - 0.05
    assert metrics["outputs"]["adapter"].startswith("s3://")
    assert loss(model_of(run, cluster, tmp_path)) > 0


def test_the_run_has_one_set_of_pods_on_the_plan_s_nodes(qlora_run):
    assert on_the_plan_s_nodes(qlora_run[0]) == {"train_in_one_process"}


def test_a_training_goes_on_from_what_another_execution_saved_however_that_one_ended(qlora_run, cluster, pyflyte):
    """One that was aborted, one that got nowhere twice, that one recovered, and the same run started beside it."""
    first, _ = qlora_run
    inputs = inputs_with(first, training={"learning_rate": 3e-4, "report_to": "none"}, lora={"merge": False})
    remote = FlyteRemote(Config.auto(config_file=str(cluster.config)), "flytesnacks", "development")

    with whenever(cluster, SAVED, lambda _: remote.terminate(remote.fetch_execution(name=aborted.name), "enough")):
        aborted = cluster.runs[cluster.run_dynamic_part(first, inputs)]
        assert ended(aborted).phase == WorkflowExecution.ABORTED
    with whenever(cluster, BEGINS, *struck(cluster, signal.SIGKILL, signal.SIGKILL)):
        failed = cluster.runs[cluster.run_dynamic_part(first, inputs)]
        error = ended(failed).error
    assert attempts_of(failed)["train_in_one_process"] == 3
    assert f"two attempts of execution {failed.name} in a row ended at the checkpoint of step" in error.message
    (recover,) = set(re.findall(r"`pyflyte (execution .* recover)`", error.message))

    pyflyte(*shlex.split(recover))
    recovered = list(cluster.runs)[-1]
    beside = cluster.run_dynamic_part(first, inputs)
    both = [done(cluster, name) for name in (recovered, beside)]
    assert both[0].execution.spec.metadata.mode == ExecutionMetadata.RECOVERED
    assert sorted(status for run in both for status in cached(run)["train_in_one_process"]) == [
        CACHE_HIT,
        CACHE_POPULATED,
    ]
    said = "".join(cluster.pods.log(run.name) for run in both)
    assert said.count(f", which execution {aborted.name} saved (s3://") == 1
    assert sum(attempts_of(run)["train_in_one_process"] for run in both) == 1
    assert attempts_of(both[0])["fetch_model"] == 0
    assert output(both[0], "metrics")["training"]["resumed_at"] >= CHECKPOINTS["every_steps"]
    assert cluster.store.list(cluster.store.uri("raw", "thriftune", "flytesnacks-development", "checkpoints")) == []


@pytest.fixture(scope="module")
def results(cluster: ControlPlane, pyflyte: Pyflyte, qlora_run: tuple[Run, Path]) -> str:
    """Where launch plans write that are registered and activated with the README's own commands."""
    _, config = qlora_run
    place = cluster.store.uri("nightly")
    settings = {**SECRETS, "THRIFTUNE_NIGHTLY_CONFIG": str(config), "THRIFTUNE_RAW_OUTPUT": place}
    register, activate = (shlex.split(command)[1:] for command in REGISTERING)
    pyflyte(*register, settings=settings)
    assert not cluster.registry.active_plans()
    pyflyte(*activate)
    return place


def test_a_launch_plan_that_fires_on_unchanged_data_costs_nothing_on_gpus(cluster, qlora_run, results):
    first, _ = qlora_run
    (plan,) = cluster.registry.active_plans()
    assert one_at_a_time(plan.spec)
    run = done(cluster, cluster.fire("nightly_qlora"))
    assert run.execution.spec.raw_output_data_config.output_location_prefix == results
    assert set(cached(run)) == {"plan", "fetch_model", "prepare_dataset", "train_in_one_process", "merge_adapter"}
    assert {status for statuses in cached(run).values() for status in statuses} == {CACHE_HIT}
    assert not pods_of(run) & ON_GPUS
    assert run.outputs.literals["model"] == first.outputs.literals["model"]


def one_at_a_time(spec: LaunchPlanSpec) -> bool:
    return bool(spec.concurrency_policy.max == 1)


def test_a_launch_plan_is_started_by_hand_with_another_run(cluster, pyflyte, qlora_run, results, tmp_path):
    """From a folder with nothing of ours. The model is not there, so that the first two tasks are all that it costs."""
    run = yaml.safe_load(qlora_run[1].read_text())
    run["model"]["source"] = gone = cluster.store.uri("models", "gone")
    file = tmp_path / "my-run.yaml"
    file.write_text(yaml.safe_dump(run))
    by_hand = ("run", "--wait", "--poll-interval", "1", "remote-launchplan", "nightly_qlora", "--config", str(file))
    said = pyflyte(*by_hand, cwd=tmp_path, check=False).stdout
    started = list(cluster.runs.values())[-1]
    assert started.execution.spec.launch_plan.name == "nightly_qlora"
    assert given_to(started) == run
    assert attempts_of(started) == {"pin": 1, "plan": 1}
    assert f"model.source = {gone}: holds no files." in said


def test_a_dict_is_started_and_a_key_that_no_client_knows_is_named_by_the_first_task(cluster, qlora_run, results):
    run = {**yaml.safe_load(qlora_run[1].read_text()), "trainings": {"epochs": 2}}
    remote = FlyteRemote(Config.auto(config_file=str(cluster.config)), "flytesnacks", "development")
    started = remote.execute(remote.fetch_launch_plan(name="nightly_qlora"), inputs={"config": run})
    ended = done(cluster, started.id.name, succeeded=False)
    assert given_to(ended) == run
    assert attempts_of(ended) == {"pin": 1}
    message = ended.execution.closure.error.message
    assert "trainings = {'epochs': 2}: is not a key. Did you mean 'training'?" in message
    assert "msgpack" not in message, "all of the run stands before it"


def given_to(run: Run) -> dict[str, Any]:
    return msgpack.unpackb(run.inputs.literals["config"].scalar.binary.value)


def test_no_token_is_in_anything_that_a_run_makes(qlora_run, cluster):
    """The bucket with inputs, outputs, decks, manifests and models; logs; what was registered; the errors of runs."""
    run, _ = qlora_run
    asked = {
        name.rpartition(".")[2]: {s.key for s in task.closure.compiled_task.template.security_context.secrets}
        for (_, _, name, _), task in cluster.registry.tasks.items()
        if task.closure.compiled_task.template.security_context.secrets
    }
    assert asked["train_in_one_process"] == {"key"}
    assert asked["fetch_model"] == {"token"}
    assert {"evaluate", "merge_adapter", "summarize", "train_on_plan"}.isdisjoint(asked)
    objects = cluster.store.list(cluster.store.uri(""))
    places = {uri: cluster.store.get(uri) or b"" for uri in objects}
    places |= {file.name: file.read_bytes() for file in cluster.pods.logs.iterdir()}
    registered = [*cluster.registry.tasks.values(), *cluster.registry.launch_plans.values()]
    places |= {f"registered {index}": entity.SerializeToString() for index, entity in enumerate(registered)}
    places["execution"] = run.execution.SerializeToString()
    assert len(places) > 100
    for secret in (TOKEN, WANDB_KEY):
        assert [place for place, content in places.items() if secret.encode() in content] == []


def test_a_merged_model_that_is_gone_is_merged_again_of_the_adapter_there_is(qlora_run, cluster):
    """What the training was not asked is answered in 4 bits, by base and adapter: it trained none of what is merged."""
    first, _ = qlora_run
    run = again_without(cluster, first, "merge_adapter", max_new_tokens=5)
    assert made_anew(run) == {"merge_adapter", "evaluate"}
    assert attempts_of(run) == {"train_on_plan": 1, "merge_adapter": 1, "evaluate": 2, "summarize": 1}
    was, now = (output(one, "metrics")["training"] for one in (first, run))
    for when in ("before", "after"):
        answers = list(zip(was[when]["answers"], now[when]["answers"], strict=True))
        assert answers
        assert [pair for pair in answers if not pair[1].startswith(pair[0].rstrip("\ufffd"))] == []
    assert output(run, "metrics")["outputs"]["adapter"] == output(first, "metrics")["outputs"]["adapter"]
    assert cluster.store.list(run.outputs.literals["model"].scalar.blob.uri)


@pytest.mark.faults  # it trains twice; tests/test_results.py has the short form
def test_a_training_that_is_gone_is_done_again_and_then_served(qlora_run, cluster):
    """A run ended well in 45 s, and named a model of which no file was left."""
    first, _ = qlora_run
    run = again_without(cluster, first, "train_in_one_process")
    assert made_anew(run) == {"train_in_one_process", "merge_adapter"}
    assert said_anew(cluster, run) == 1
    everything = ("fetch_model", "prepare_dataset", "train_in_one_process", "merge_adapter")
    last = again_without(cluster, run, *everything)
    assert made_anew(last) == {*everything}
    assert said_anew(cluster, last) == 3  # the merged model is that of another adapter
    metrics = output(last, "metrics")
    assert metrics["training"]["after"]["loss"] < metrics["training"]["before"]["loss"] - 0.05
    assert all(cluster.store.list(place) for place in metrics["outputs"].values())

"""This package's workflows, registered, uploaded and run as Flyte would, on the tiny model."""

import json
import shlex
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from flyteidl.admin.launch_plan_pb2 import LaunchPlanSpec
from flyteidl.core.catalog_pb2 import CACHE_DISABLED, CACHE_HIT, CACHE_POPULATED
from flyteidl.core.literals_pb2 import LiteralMap
from flytekit.configuration import Config
from flytekit.remote import FlyteRemote
from google.protobuf.json_format import MessageToDict
from test_readme import REGISTERING
from test_workflows import FULL, QLORA, only, pyflyte_run, write_config

from cluster.conftest import IN_CLUSTER, Pyflyte, done
from cluster.control_plane import ControlPlane
from cluster.records import NodeRecord, Run

pytestmark = pytest.mark.slow
TRAINING = {"max_steps": 8}
CHECKPOINTS = {"every_steps": 2}
TOKEN, WANDB_KEY = "hf_PlantedTokenThatMustNotAppear", "0123456789abcdefPlantedKeyThatMustNotAppear"
SECRETS = {"THRIFTUNE_HUB_SECRET": "hub/token", "THRIFTUNE_WANDB_SECRET": "wandb/key"}
ON_GPUS = {"evaluate", "train_in_one_process", "train_2"}


@pytest.fixture(scope="module", autouse=True)
def secrets(cluster: ControlPlane) -> None:
    """Secrets as a cluster has them, for the tasks that ask."""
    cluster.pods.secrets.update({("hub", "token"): TOKEN, ("wandb", "key"): WANDB_KEY})


@pytest.fixture(scope="module")
def sources(cluster: ControlPlane, tiny_model_dir: Path, chat_rows_file: Path) -> tuple[str, str]:
    """The tiny model and its rows, in the bucket."""
    store = cluster.store
    model = store.upload(tiny_model_dir, store.uri("models", "tiny"))
    return model, store.upload(chat_rows_file, store.uri("data", "chat.jsonl"))


@pytest.fixture(scope="module")
def full_run(
    cluster: ControlPlane, pyflyte: Pyflyte, sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    hardware = {"nodes": 2, "devices_per_node": 1}
    folder = tmp_path_factory.mktemp("full")
    config = write_config(folder, "full", *sources, hardware=hardware, training=TRAINING, checkpoints=CHECKPOINTS)
    with a_fault_after_a_checkpoint(cluster, signal.SIGKILL):
        pyflyte("run", "--remote", *IN_CLUSTER, *FULL, "--config", str(config), settings=SECRETS)
    return done(cluster), config


@pytest.fixture(scope="module")
def qlora_run(
    cluster: ControlPlane, pyflyte: Pyflyte, sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    """With a hub token and a key of Weights & Biases among the cluster's secrets."""
    overrides = {
        "lora": {"rank": 8, "alpha": 16},
        "data": {"packing": True},
        "training": {
            "optimizer": "paged_adamw_8bit", "max_steps": 24, "global_batch": 4, "micro_batch": 2, "report_to": "wandb"
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("qlora")
    config = write_config(folder, "qlora", *sources, hardware={"nodes": 1}, checkpoints=CHECKPOINTS, **overrides)
    offline = ("--env", "WANDB_MODE=offline")
    with a_fault_after_a_checkpoint(cluster, signal.SIGTERM):
        pyflyte("run", "--remote", *IN_CLUSTER, *offline, *QLORA, "--config", str(config), settings=SECRETS)
    return done(cluster), config


@contextmanager
def a_fault_after_a_checkpoint(cluster: ControlPlane, number: int) -> Iterator[None]:
    """Strike the first pod of a run that begins in this block that says it saved a checkpoint."""
    over, before = threading.Event(), set(cluster.runs)

    def strike() -> None:
        while not over.wait(0.05):
            logs = [log for run in set(cluster.runs) - before for log in cluster.pods.logs.glob(f"{run}-*.log")]
            for log in logs:
                if b"Checkpoint of step" in log.read_bytes():
                    return cluster.pods.strike(log.stem, number)
        return None

    watcher = threading.Thread(target=strike)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def output(run: Run, name: str) -> dict[str, Any]:
    return msgpack.unpackb(run.outputs.literals[name].scalar.binary.value)


def model_of(run: Run, cluster: ControlPlane, folder: Path) -> Path:
    return cluster.store.download(run.outputs.literals["model"].scalar.blob.uri, folder / "model")


def cached(run: Run) -> dict[str, set[int]]:
    """What became of the nodes of each task that may be cached."""
    found: dict[str, set[int]] = {}
    for record in run.nodes.values():
        if name := name_of_cached(record):
            status = record.execution.closure.task_node_metadata.cache_status
            found.setdefault(name, set()).add(status)
    return found


def name_of_cached(record: NodeRecord) -> str:
    """The task of a node that may be cached; empty for others."""
    node = record.execution.closure.task_node_metadata
    return "" if node.cache_status == CACHE_DISABLED else str(node.catalog_key.dataset_id.name.rpartition(".")[2])


def attempts_of(run: Run) -> Counter[str]:
    """How often a run started pods for each task."""
    attempts = (attempt for record in run.nodes.values() for attempt in record.attempts)
    return Counter(attempt.execution.id.task_id.name.rpartition(".")[2] for attempt in attempts)


def pods_of(run: Run) -> set[str]:
    """The tasks that a run started pods for."""
    return set(attempts_of(run))


def on_the_plan_s_nodes(run: Run) -> set[str]:
    """The tasks whose pods a run wanted on nodes of its plan."""
    nodes = [node for record in run.nodes.values() if record.dynamic for node in record.dynamic.primary.template.nodes]
    pods = {node.task_node.reference_id.name: node.task_node.overrides.pod_template.pod_spec for node in nodes}
    assert len(pods) == len(nodes), "each task once"
    instance = output(run, "plan")["instance"]
    selected = [name for name, pod in pods.items() if instance in MessageToDict(pod).get("nodeSelector", {}).values()]
    return {name.rpartition(".")[2] for name in selected}


def loss(directory: Path) -> float:
    """How a model scores with nothing but transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()
    text = "[INST] What colour is the sky on day 3? [/INST] On day 3, the sky is gold."
    tokens = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss)


def test_a_job_of_two_nodes_trains_what_a_local_run_trains(full_run, cluster, tiny_model_dir, chat_rows_file, tmp_path):
    """Although a pod of it was killed: the next attempt goes on from its checkpoint, on two nodes again."""
    run, _ = full_run
    assert output(run, "plan")["nodes"] == 2
    assert attempts_of(run)["train_2"] == 2
    assert len(list(cluster.pods.logs.glob(f"{run.name}-*-worker-*.log"))) == 2 * 2
    assert output(run, "metrics")["training"]["resumed_at"] >= CHECKPOINTS["every_steps"]
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
    kept = {key: {CACHE_HIT} for key in ("fetch_model", "prepare_dataset", "train_2")}
    assert cached(again) == {"plan": {CACHE_POPULATED}, **kept}
    assert pods_of(again) == {"pin", "plan", "preflight", "train_on_plan", "summarize"}
    assert again.outputs.literals["model"] == first.outputs.literals["model"]


def test_qlora_gives_a_merged_model(qlora_run, cluster, tmp_path):
    """Although its node went away: it saved what it had on the notice, and the next attempt went on from there."""
    run, _ = qlora_run
    assert attempts_of(run)["train_in_one_process"] == 2
    assert output(run, "metrics")["training"]["resumed_at"] >= CHECKPOINTS["every_steps"]
    metrics = output(run, "metrics")
    assert metrics["training"]["after"]["loss"] < metrics["training"]["before"]["loss"] - 0.05
    assert metrics["outputs"]["adapter"].startswith("s3://")
    assert loss(model_of(run, cluster, tmp_path)) > 0


def test_a_run_has_one_set_of_pods_on_the_plan_s_nodes(full_run, qlora_run):
    """There were three: one before and one after the training."""
    assert on_the_plan_s_nodes(full_run[0]) == {"train_2"}
    assert on_the_plan_s_nodes(qlora_run[0]) == {"train_in_one_process"}


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


def place_of(run: Run, task: str) -> str:
    """Where a run has the result of a task."""
    (node,) = [node for node in run.nodes.values() if name_of_cached(node) == task]
    outputs = node.outputs.literals
    return str((outputs["model"] if "model" in outputs else outputs["o0"]).scalar.blob.uri)


def again_without(cluster: ControlPlane, run: Run, *gone: str, **evaluation: Any) -> Run:
    """Run the dynamic part again, after results of tasks were removed, with other values in its `evaluation`."""
    for task in gone:
        cluster.store.remove(place_of(run, task))
    inputs = LiteralMap()
    inputs.CopyFrom(run.inputs)
    binary = inputs.literals["config"].scalar.binary
    config = msgpack.unpackb(binary.value)
    config["evaluation"] |= evaluation
    binary.value = msgpack.packb(config)
    return done(cluster, cluster.run_dynamic_part(run, inputs))


def made_anew(run: Run) -> set[str]:
    """The cached tasks that were not served from the cache."""
    return {name for name, statuses in cached(run).items() if statuses != {CACHE_HIT}}


def said_anew(cluster: ControlPlane, run: Run) -> int:
    return cluster.pods.log(run.name).count("may not be read, and is made anew: s3://")


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

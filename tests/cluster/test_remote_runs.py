"""This package's workflows, registered, uploaded and run as Flyte would, on the tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from flyteidl.core.catalog_pb2 import CACHE_DISABLED, CACHE_HIT
from test_workflows import FULL, QLORA, only, pyflyte_run, write_config

from cluster.conftest import IN_CLUSTER, ROOT, Pyflyte, done
from cluster.control_plane import ControlPlane
from cluster.records import Run

pytestmark = pytest.mark.slow
PACKAGES = ("thriftune", "tasks", "workflows", "pod_templates", "deepspeed_configs")
TRAINING = {"max_steps": 4}
NIGHTLY = """
from flytekit import CronSchedule, LaunchPlan
from thriftune.config import RunConfig
from workflows.full_finetune import full_finetune

nightly = LaunchPlan.get_or_create(
    full_finetune,
    "nightly",
    fixed_inputs={{"config": RunConfig.model_validate({config!r})}},
    schedule=CronSchedule(schedule="0 3 * * *"),
)
"""


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
    config = write_config(tmp_path_factory.mktemp("full"), "full", *sources, hardware=hardware, training=TRAINING)
    pyflyte("run", "--remote", *IN_CLUSTER, *FULL, "--config", str(config))
    return done(cluster), config


def output(run: Run, name: str) -> dict[str, Any]:
    return msgpack.unpackb(run.outputs.literals[name].scalar.binary.value)


def model_of(run: Run, cluster: ControlPlane, folder: Path) -> Path:
    return cluster.store.download(run.outputs.literals["model"].scalar.blob.uri, folder / "model")


def cached(run: Run) -> dict[str, int]:
    """What became of each task that may be cached."""
    nodes = (node.execution.closure.task_node_metadata for node in run.nodes.values())
    return {
        node.catalog_key.dataset_id.name.rpartition(".")[2]: node.cache_status
        for node in nodes
        if node.cache_status != CACHE_DISABLED
    }


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
    run, _ = full_run
    assert output(run, "plan")["nodes"] == 2
    assert len(list(cluster.pods.logs.glob(f"{run.name}-n4-0-dn1-0-worker-*.log"))) == 2
    local = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file, training=TRAINING)
    pyflyte_run(tmp_path, *FULL, "--config", str(local))
    there, here = output(run, "metrics"), json.loads(only(tmp_path, "outputs/tiny/*/metrics.json").read_text())
    assert there["before"]["loss"] == pytest.approx(here["before"]["loss"], abs=1e-4)
    assert there["after"]["loss"] == pytest.approx(here["after"]["loss"], abs=0.01)
    assert there["after"]["loss"] < there["before"]["loss"] - 0.05
    saved = only(tmp_path, "outputs/tiny/*/model")
    assert loss(model_of(run, cluster, tmp_path)) == pytest.approx(loss(saved), abs=0.02)


def test_qlora_gives_a_merged_model(cluster, pyflyte, sources, tmp_path):
    overrides = {
        "lora": {"rank": 8, "alpha": 16},
        "data": {"packing": True},
        "training": {"optimizer": "paged_adamw_8bit", "max_steps": 12, "global_batch": 4, "micro_batch": 2},
    }
    config = write_config(tmp_path, "qlora", *sources, hardware={"nodes": 1}, **overrides)
    pyflyte("run", "--remote", *IN_CLUSTER, *QLORA, "--config", str(config))
    run = done(cluster)
    metrics = output(run, "metrics")
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.05
    assert metrics["outputs"]["adapter"].startswith("s3://")
    assert loss(model_of(run, cluster, tmp_path)) > 0


def test_a_launch_plan_that_fires_on_unchanged_data_fetches_and_prepares_nothing(cluster, pyflyte, full_run, tmp_path):
    first, config = full_run
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    plan = NIGHTLY.format(config=yaml.safe_load(config.read_text()))
    (tmp_path / "workflows" / "nightly.py").write_text(plan)
    version = ("--image", "thriftune:test", "--destination-dir", ".", "--version", "v1")
    pyflyte("register", *version, "workflows/nightly.py", cwd=tmp_path)
    pyflyte("launchplan", "--activate", "nightly")
    run = done(cluster, cluster.fire("nightly"))
    assert set(cached(first)) == {"fetch_model", "prepare_dataset"}
    assert cached(run) == {"fetch_model": CACHE_HIT, "prepare_dataset": CACHE_HIT}
    assert [name for name, node in run.nodes.items() if not node.attempts] == ["n2", "n3"]
    assert output(run, "metrics")["before"]["loss"] == output(first, "metrics")["before"]["loss"]

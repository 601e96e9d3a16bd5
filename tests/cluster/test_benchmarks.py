"""Benchmarks and the gate on a control plane: shards side by side, tried again alone, found again, and a verdict."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from flyteidl.core.catalog_pb2 import CACHE_HIT, CACHE_POPULATED
from test_workflows import write_config

from cluster import image
from cluster.conftest import IN_CLUSTER, SECRETS, Pyflyte, done
from cluster.control_plane import ControlPlane
from cluster.looking import attempts_of, inputs_with, name_of_cached, output, pods_of
from cluster.records import NodeRecord, Run
from cluster.striking import struck, whenever

pytestmark = pytest.mark.slow
SHARDS = 2
COLOURS = ("gold", "blue", "grey", "red")
# Nothing gets so much better in two steps.
GATE = {"improves": [{"metric": "colours.accuracy", "by": 0.9}], "keeps": [{"metric": "colours/even.accuracy"}]}
ON_NODES = {"train_in_one_process", "benchmark_shard_map"}


@pytest.fixture(scope="module")
def libraries() -> tuple[str, ...]:
    return (*image.OF_TRAINING, "lm_eval.models.huggingface")


@pytest.fixture(scope="module")
def items(cluster: ControlPlane) -> str:
    """A benchmark of our own in the bucket."""
    lines = [
        {
            "id": f"day-{day}",
            "group": "odd" if day % 2 else "even",
            "question": f"What colour is the sky on day {day}?",
            "choices": list(COLOURS),
            "answer": day % len(COLOURS),
        }
        for day in range(16)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return cluster.store.put(cluster.store.uri("benchmarks", "colours.jsonl"), content.encode())


@pytest.fixture(scope="module")
def first(
    cluster: ControlPlane,
    pyflyte: Pyflyte,
    sources: tuple[str, str],
    items: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run of which the node of one shard is lost, and whose gate cannot be passed."""
    sections = {
        "hardware": {"nodes": 1},
        "training": {"max_steps": 2},
        "lora": {"rank": 4, "merge": False},
        "benchmarks": {
            "tasks": [{"name": "colours", "file": items, "format": "multiple_choice"}],
            "shards": SHARDS,
        },
        "publish": {"repository": "somebody/tiny", "dry_run": True, "gate": GATE},
    }
    folder = tmp_path_factory.mktemp("benchmarks")
    config = write_config(folder, "lora", *sources, **sections)
    finetune = ("workflows/finetune.py", "finetune")
    with whenever(cluster, "Measuring the model on colours", *struck(cluster, signal.SIGKILL)):
        pyflyte("run", "--remote", *IN_CLUSTER, *finetune, "--config", str(config), settings=SECRETS)
    return done(cluster)


def shards_of(run: Run) -> list[NodeRecord]:
    """The nodes of a run that measured a part of a benchmark, as they began: those of the base come first."""
    return [node for node in run.nodes.values() if node.part is not None]


def statuses(nodes: list[NodeRecord]) -> list[int]:
    return [node.execution.closure.task_node_metadata.cache_status for node in nodes]


def began(node: NodeRecord) -> float:
    return float(node.execution.closure.started_at.ToNanoseconds())


def ended(node: NodeRecord) -> float:
    return began(node) + float(node.execution.closure.duration.ToNanoseconds())


def test_shards_run_side_by_side(first):
    nodes = shards_of(first)
    assert len(nodes) == 2 * SHARDS
    assert {name_of_cached(node) for node in nodes} == {"benchmark_shard_map"}
    for pair in (nodes[:SHARDS], nodes[SHARDS:]):
        assert max(map(began, pair)) < min(map(ended, pair))


def test_a_shard_that_loses_its_node_is_tried_again_alone(first):
    assert Counter(len(node.attempts) for node in shards_of(first)) == {1: 2 * SHARDS - 1, 2: 1}


def test_base_and_result_are_compared_on_all_items(first, cluster):
    compared = {one["metric"]: one for one in output(first, "metrics")["comparison"]["metrics"]}
    assert compared["colours.accuracy"]["items"] == 16
    assert compared["colours/even.accuracy"]["items"] == compared["colours/odd.accuracy"]["items"] == 8
    kept = cluster.store.list(output(first, "metrics")["outputs"]["benchmarks"])
    assert {Path(uri).parent.name for uri in kept if uri.endswith("items.parquet")} == {"base", "tuned"}


def test_a_gate_that_fails_publishes_nothing_and_the_run_succeeds(first, cluster):
    metrics = output(first, "metrics")
    assert metrics["outputs"]["published"] == ""
    assert metrics["verdict"]["outcome"] == "fails"
    assert any("colours.accuracy" in remark for remark in metrics["remarks"])
    assert cluster.store.list(metrics["outputs"]["adapter"]), "the result is kept"


def test_the_same_run_again_is_served_and_asks_for_no_gpu(first, cluster):
    again = done(cluster, cluster.run_dynamic_part(first, first.inputs))
    assert statuses(shards_of(again)) == [CACHE_HIT] * 2 * SHARDS
    assert not pods_of(again) & ON_NODES
    assert output(again, "metrics")["comparison"] == output(first, "metrics")["comparison"]


def test_a_run_with_another_adapter_finds_the_results_of_the_base(first, cluster):
    other = done(cluster, cluster.run_dynamic_part(first, inputs_with(first, training={"learning_rate": 5e-3})))
    nodes = shards_of(other)
    assert statuses(nodes[:SHARDS]) == [CACHE_HIT] * SHARDS
    assert statuses(nodes[SHARDS:]) == [CACHE_POPULATED] * SHARDS
    assert attempts_of(other)["benchmark_shard_map"] == SHARDS

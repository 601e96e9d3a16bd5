"""What the tests of remote runs look at: attempts, pods, cache and results of an execution; and the same run again."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
from flyteidl.core.catalog_pb2 import CACHE_DISABLED, CACHE_HIT
from flyteidl.core.literals_pb2 import LiteralMap
from google.protobuf.json_format import MessageToDict

from cluster.conftest import done
from cluster.control_plane import ControlPlane
from cluster.records import NodeRecord, Run


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


def place_of(run: Run, task: str) -> str:
    """Where a run has the result of a task."""
    (node,) = [node for node in run.nodes.values() if name_of_cached(node) == task]
    outputs = node.outputs.literals
    return str((outputs["model"] if "model" in outputs else outputs["o0"]).scalar.blob.uri)


def again_without(cluster: ControlPlane, run: Run, *gone: str, **evaluation: Any) -> Run:
    """Run the dynamic part again, after results of tasks were removed, with other values in its `evaluation`."""
    for task in gone:
        cluster.store.remove(place_of(run, task))
    return done(cluster, cluster.run_dynamic_part(run, inputs_with(run, evaluation=evaluation)))


def inputs_with(run: Run, **sections: dict[str, Any]) -> LiteralMap:
    """The inputs of a run, with other values in sections of its run file."""
    inputs = LiteralMap()
    inputs.CopyFrom(run.inputs)
    binary = inputs.literals["config"].scalar.binary
    config = msgpack.unpackb(binary.value)
    for section, values in sections.items():
        config[section] |= values
    binary.value = msgpack.packb(config)
    return inputs


def made_anew(run: Run) -> set[str]:
    """The cached tasks that were not served from the cache."""
    return {name for name, statuses in cached(run).items() if statuses != {CACHE_HIT}}


def said_anew(cluster: ControlPlane, run: Run) -> int:
    return cluster.pods.log(run.name).count("may not be read, and is made anew: s3://")

"""What runs before what on a cluster: the nodes that the plan's part of a workflow becomes, compiled as Flyte does."""

import pytest
from planning import compiled, planned

from workflows.finetune import train_on_plan

TRAINS = {"full": "train_1", "lora": "train_in_one_process", "qlora": "train_in_one_process"}
PUBLISHED = {"publish": {"repository": "me/tuned"}}
MEASURED_AGAIN = {"evaluation": {"saved_model": True}}
# A run's own sections, and what its nodes are then, in the order in which they may run.
RUNS = [
    ("full", {}, ["train"]),
    ("full", MEASURED_AGAIN, ["train", "evaluate"]),
    ("full", PUBLISHED, ["train", "publish"]),
    ("full", {**MEASURED_AGAIN, **PUBLISHED}, ["train", "evaluate", "publish"]),
    *((method, {}, ["train", "merge_adapter"]) for method in ("lora", "qlora")),
    *((method, MEASURED_AGAIN, ["train", "merge_adapter", "evaluate"]) for method in ("lora", "qlora")),
    *((method, PUBLISHED, ["train", "merge_adapter", "publish"]) for method in ("lora", "qlora")),
    ("qlora", {**MEASURED_AGAIN, **PUBLISHED}, ["train", "merge_adapter", "evaluate", "publish"]),
    ("qlora", {"lora": {"merge": False}}, ["train"]),
    ("lora", {"lora": {"merge": False}, **MEASURED_AGAIN, **PUBLISHED}, ["train", "evaluate", "publish"]),
]


def task_of(node):
    return node.metadata.name.rpartition(".")[2]


def gpus_of(node):
    """The GPUs that a node asks for."""
    resources = node.task_node.overrides.resources
    return [entry.value for entry in (resources.requests if resources else []) if entry.name == 2]


@pytest.fixture
def nodes_of(run_config):
    """The nodes of a run on T4s, each with the names of those that it waits for, and the plan."""

    def make(method, **sections):
        hardware, training = {"device": "T4"}, {"precision": "fp16"}
        config = run_config(method, hardware=hardware, training=training, **sections)
        plan = planned(config)
        nodes = compiled(train_on_plan, config, plan)
        names = {node.id: task_of(node) for node in nodes}
        return nodes, {task_of(node): {names[n] for n in node.upstream_node_ids} for node in nodes}, plan

    return make


@pytest.mark.parametrize(("method", "sections", "expected"), RUNS)
def test_a_run_has_one_training_and_what_it_asks_for_besides(nodes_of, method, sections, expected):
    """A model was loaded on GPUs three times: it was measured in tasks of its own, before and after training."""
    nodes, _, _ = nodes_of(method, **sections)
    wanted = [TRAINS[method] if name == "train" else name for name in expected]
    assert sorted(map(task_of, nodes)) == sorted(["fetch_model", "prepare_dataset", "summarize", *wanted])


@pytest.mark.parametrize(("method", "sections", "expected"), RUNS)
def test_only_training_and_what_measures_the_result_again_get_gpus(nodes_of, method, sections, expected):
    nodes, _, plan = nodes_of(method, **sections)
    with_gpus = {task_of(node): gpus_of(node) for node in nodes if gpus_of(node)}
    expected_there = {TRAINS[method], *(["evaluate"] if "evaluate" in expected else [])}
    assert with_gpus == {name: [str(plan.devices_per_node)] for name in expected_there}


@pytest.mark.parametrize("method", TRAINS)
def test_training_waits_for_model_and_rows_and_nothing_else(nodes_of, method):
    _, waits_for, _ = nodes_of(method, data={"packing": True}, **MEASURED_AGAIN)
    assert waits_for["fetch_model"] == set()
    assert waits_for["prepare_dataset"] == {"fetch_model"}
    assert waits_for[TRAINS[method]] == {"fetch_model", "prepare_dataset"}


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_is_measured_again_is_the_result(nodes_of, method, merge):
    """The merged model where there is one; else the adapter on the base model."""
    _, waits_for, _ = nodes_of(method, lora={"merge": merge}, **MEASURED_AGAIN)
    if merge:
        assert waits_for["evaluate"] == {"merge_adapter", "prepare_dataset"}
    else:
        assert waits_for["evaluate"] == {"fetch_model", TRAINS[method], "prepare_dataset"}
    assert waits_for["summarize"] >= {"evaluate", TRAINS[method]}


@pytest.mark.parametrize("method", TRAINS)
def test_publishing_is_the_last_thing_of_a_run_and_nothing_waits_for_it(nodes_of, method):
    """The summary waited for it, so that a hub that refused cost the numbers of the whole run."""
    nodes, waits_for, _ = nodes_of(method, **MEASURED_AGAIN, **PUBLISHED)
    assert [name for name, before in waits_for.items() if "publish" in before] == []
    before, waiting = set(), ["publish"]
    while waiting:
        name = waiting.pop()
        before.add(name)
        waiting += [other for other in waits_for[name] if other not in before]
    assert before == set(map(task_of, nodes))
    assert len(before) == len(nodes)

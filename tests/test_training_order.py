"""What runs before what on a cluster: the nodes that the plan's part of a workflow becomes, compiled as Flyte does."""

import pytest
from planning import compiled, planned

from workflows.full_finetune import train_full_on_plan
from workflows.qlora_finetune import train_qlora_on_plan

ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("method", "part", "trains"),
    [("full", train_full_on_plan, "train_full_1"), ("qlora", train_qlora_on_plan, "train_qlora")],
)
def test_training_waits_for_the_evaluation_that_tries_packing(run_config, method, part, trains):
    """They ran at once, so a model that cannot be packed was found out while it was trained."""
    config = run_config(method, hardware={"device": "T4"}, training={"precision": "fp16"}, data={"packing": True})
    plan = planned(config, ZERO3 if method == "full" else None)
    compiled_nodes = compiled(part, config, plan)
    nodes = {node.id: node for node in compiled_nodes}
    (training,) = [node for node in compiled_nodes if node.metadata.name.endswith(trains)]
    waits_for = {nodes[node].metadata.name: nodes[node] for node in training.upstream_node_ids}
    assert set(waits_for) == {"fetch_model", "prepare_dataset", "evaluate"}
    names = {nodes[node].metadata.name for node in waits_for["evaluate"].upstream_node_ids}
    assert names == {"fetch_model", "prepare_dataset"}
    assert [nodes[n].metadata.name for n in waits_for["prepare_dataset"].upstream_node_ids] == ["fetch_model"]
    assert waits_for["fetch_model"].upstream_node_ids == []


@pytest.mark.parametrize(("method", "part"), [("full", train_full_on_plan), ("qlora", train_qlora_on_plan)])
def test_publishing_is_the_last_thing_of_a_run_and_nothing_waits_for_it(run_config, method, part):
    """The summary waited for it, so that a hub that refused cost the numbers of the whole run."""
    config = run_config(
        method, hardware={"device": "T4"}, training={"precision": "fp16"}, publish={"repository": "me/tuned"}
    )
    nodes = compiled(part, config, planned(config, ZERO3 if method == "full" else None))
    (publishing,) = [node for node in nodes if node.metadata.name == "publish"]
    assert [node.id for node in nodes if publishing.id in node.upstream_node_ids] == []
    by_id = {node.id: node for node in nodes}
    before, waiting = set(), [publishing]
    while waiting:
        before.add(waiting[-1].id)
        waiting += [by_id[name] for name in waiting.pop().upstream_node_ids if name not in before]
    assert {node.metadata.name for node in nodes} == {by_id[name].metadata.name for name in before}
    assert len(before) == len(nodes)

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

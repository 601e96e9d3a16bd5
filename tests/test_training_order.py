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
    assert [nodes[node].metadata.name for node in training.upstream_node_ids] == ["evaluate"]
    (before,) = training.upstream_node_ids
    assert nodes[before].upstream_node_ids == []

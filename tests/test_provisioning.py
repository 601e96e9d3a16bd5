"""What the plan chose is what the nodes ask for, compiled as Flyte compiles what follows a plan."""

import pytest
from planning import compiled, planned

from workflows.full_finetune import train_full_on_plan
from workflows.qlora_finetune import train_qlora_on_plan


def overridden(node):
    """What a node asks for in place of its task's declaration: resources, accelerator, /dev/shm."""
    overrides = node.task_node.overrides
    requests = {entry.name: entry.value for entry in overrides.resources.requests}
    limits = {entry.name: entry.value for entry in overrides.resources.limits}
    assert requests == limits
    (volume,) = overrides.pod_template.pod_spec["volumes"]
    return requests, overrides.extended_resources.gpu_accelerator.device, volume["emptyDir"]


@pytest.mark.parametrize(
    ("method", "part", "hardware", "training_task", "gpus", "device"),
    [
        ("full", train_full_on_plan, {"instance": "g4dn.metal", "nodes": 3}, "train_full_3", "8", "nvidia-tesla-t4"),
        ("full", train_full_on_plan, {"instance": "g5.12xlarge", "nodes": 1}, "train_full_1", "4", "nvidia-a10g"),
        ("qlora", train_qlora_on_plan, {"instance": "g6.xlarge"}, "train_qlora", "1", "nvidia-l4"),
    ],
)
def test_gpu_nodes_ask_for_what_the_plan_says(run_config, method, part, hardware, training_task, gpus, device):
    config = run_config(
        method,
        hardware={"device": None, **hardware},
        training={"global_batch": 24, "micro_batch": 1, "precision": "fp16"},
    )
    plan = planned(config)
    nodes = compiled(part, config, plan)
    on_gpus = [node for node in nodes if node.metadata.name.rpartition(".")[2] in ("evaluate", training_task)]
    assert len(on_gpus) == 3
    for node in on_gpus:
        requests, accelerator, shared_memory = overridden(node)
        assert {str(value) for value in requests.values()} == {
            gpus, str(plan.request.cpus), f"{plan.request.memory_gib}Gi"
        }  # fmt: skip
        assert accelerator == device
        assert shared_memory == {"medium": "Memory", "sizeLimit": f"{plan.request.shared_memory_gib}Gi"}


def test_what_needs_no_gpu_asks_for_none(run_config):
    config = run_config("qlora", hardware={"device": "T4"}, training={"precision": "fp16"})
    nodes = compiled(train_qlora_on_plan, config, planned(config))
    on_cpu = [n for n in nodes if n.metadata.name.rpartition(".")[2] in ("merge_adapter", "summarize")]
    assert len(on_cpu) == 2
    assert all(
        node.task_node.overrides.resources is None or not node.task_node.overrides.resources.limits for node in on_cpu
    )

"""What the `@dynamic` tasks add to a run, compiled as their pods do, for plans that stand for the others.

Usage: python -m specification.plans DIRECTORY
"""

import json
import sys
from pathlib import Path
from typing import Any

from flyteidl.core.dynamic_job_pb2 import DynamicJobSpec
from planning import VERSIONS, compiled, planned

from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan
from workflows.finetune import train_on_plan

_TRAINING = {"global_batch": 24, "micro_batch": 1, "precision": "fp16", "max_steps": 2}
# By name: several nodes; several GPUs of one node; one process on all GPUs of a node; one on one GPU; one on a CPU.
_RUNS: dict[str, dict[str, Any]] = {
    "full-3x-g4dn.metal": {"method": "full", "hardware": {"instance": "g4dn.metal", "nodes": 3}},
    "full-1x-g5.12xlarge": {"method": "full", "hardware": {"instance": "g5.12xlarge", "nodes": 1}},
    "qlora-1x-g4dn.12xlarge": {
        "method": "qlora", "strategy": "layers", "hardware": {"instance": "g4dn.12xlarge", "devices_per_node": 4},
        "export": {"formats": ["fp16"]},
    },
    "lora-1x-g6.xlarge": {
        "method": "lora", "hardware": {"instance": "g6.xlarge"}, "benchmarks": {"tasks": ["general-mini"], "shards": 2}
    },
    "qlora-1x-k3s": {
        "method": "qlora", "hardware": {"instance": "k3s"}, "training": {**_TRAINING, "precision": "fp32"}
    },
}  # fmt: skip


def run(name: str) -> tuple[RunConfig, TrainingPlan]:
    """The run of a plan, one that uses every task there is, and the plan."""
    config = RunConfig.model_validate(
        {
            "name": "golden",
            "model": {"source": "owner/tiny"},
            "data": {"source": "owner/rows", "format": "chat", "max_length": 64},
            "training": _TRAINING,
            "evaluation": {"saved_model": True},
            "publish": {"repository": "owner/golden"},
            **_RUNS[name],
        }
    )
    return config, planned(config)


def write(directory: Path) -> None:
    """One DynamicJobSpec for each plan."""
    for name in _RUNS:
        versions = json.dumps({"general-mini": "1"})
        nodes = compiled(train_on_plan, *run(name), **VERSIONS, benchmarks_version=versions)
        spec = DynamicJobSpec(nodes=[node.to_flyte_idl() for node in nodes])
        (directory / name).write_bytes(spec.SerializeToString(deterministic=True))


if __name__ == "__main__":
    write(Path(sys.argv[1]))

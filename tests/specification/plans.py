"""What the `@dynamic` tasks add to a run, compiled as their pods do, for plans that stand for the others.

Usage: python -m specification.plans DIRECTORY
"""

import sys
from pathlib import Path
from typing import Any

from flyteidl.core.dynamic_job_pb2 import DynamicJobSpec
from planning import compiled, planned

from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan
from workflows.full_finetune import train_full_on_plan
from workflows.qlora_finetune import train_qlora_on_plan

# By name: several nodes; several GPUs of one node; one process on all GPUs of a node.
_HARDWARE: dict[str, tuple[str, dict[str, Any]]] = {
    "full-3x-g4dn.metal": ("full", {"instance": "g4dn.metal", "nodes": 3}),
    "full-1x-g5.12xlarge": ("full", {"instance": "g5.12xlarge", "nodes": 1}),
    "qlora-1x-g4dn.12xlarge": ("qlora", {"instance": "g4dn.12xlarge"}),
}
_PARTS = {"full": train_full_on_plan, "qlora": train_qlora_on_plan}


def run(name: str) -> tuple[RunConfig, TrainingPlan]:
    """The run of a plan, one that uses every task there is, and the plan."""
    method, hardware = _HARDWARE[name]
    config = RunConfig.model_validate(
        {
            "name": "golden",
            "method": method,
            "model": {"source": "owner/tiny"},
            "data": {"source": "owner/rows", "format": "chat", "max_length": 64},
            "hardware": hardware,
            "training": {"global_batch": 24, "micro_batch": 1, "precision": "fp16", "max_steps": 2},
            "publish": {"repository": "owner/golden"},
        }
    )
    return config, planned(config)


def write(directory: Path) -> None:
    """One DynamicJobSpec for each plan."""
    for name, (method, _) in _HARDWARE.items():
        nodes = compiled(_PARTS[method], *run(name))
        spec = DynamicJobSpec(nodes=[node.to_flyte_idl() for node in nodes])
        (directory / name).write_bytes(spec.SerializeToString(deterministic=True))


if __name__ == "__main__":
    write(Path(sys.argv[1]))

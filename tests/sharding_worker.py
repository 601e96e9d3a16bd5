"""Trainings whose weights are looked at on each rank: what it holds of every one after loading, and after training.

Usage: RANKS of tests/sharding_worker.py JOBS.json, with what tests/training_worker.py takes, and perhaps a `store` for
checkpoints. Writes `<output>.json` with what was measured, and `<output>.rank<N>.json` with what the rank held.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from planning import planned
from torch.distributed.tensor import DTensor

from thriftune import distributed
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import RunConfig
from thriftune.methods import METHODS
from thriftune.strategies import STRATEGIES
from thriftune.strategies.fsdp.state import shards
from thriftune.training.fit import Inputs, fit


def held(model) -> dict[str, dict]:
    """What this rank holds of each parameter: its shard if it is divided, else all of it."""
    found = {}
    for name, parameter in shards(model).items():
        shard = getattr(parameter, "ds_tensor", parameter).data.detach()
        is_dtensor = isinstance(shard, DTensor)
        shard = (shard.to_local() if is_dtensor else shard).contiguous().view(-1)
        found[name.replace("base_model.model.", "").replace(".base_layer", "")] = {
            "bytes": shard.numel() * shard.element_size(),
            "whole": getattr(parameter, "ds_numel", parameter.numel()) * shard.element_size(),
            "gathered": parameter.numel() if hasattr(parameter, "ds_tensor") else 0,
            "digest": digest(shard),
            "trains": parameter.requires_grad,
            "is_dtensor": is_dtensor,
            "dtype": str(shard.dtype),
        }
    return found


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def run(job: dict) -> dict:
    config, seen = RunConfig.model_validate(job["config"]), {}
    strategy, method = STRATEGIES[config.strategy], METHODS[config.method]
    load, save = strategy.load, method.save

    def loading(*arguments):
        model = load(*arguments)
        seen["loaded"] = held(model)
        return model

    def saving(trained, *arguments):
        seen["trained"] = held(trained.model)
        save(trained, *arguments)

    with mock.patch.multiple(strategy, load=loading), mock.patch.multiple(method, save=saving):
        train(job, config)
    return seen


def train(job: dict, config: RunConfig) -> None:
    plan = planned(config, model=Path(job["model"]))
    place = CheckpointLocation(job["store"], Path(job["output"] + ".scratch"), 5.0) if "store" in job else None
    result = fit(Inputs(config, plan, Path(job["model"]), Path(job["dataset"]), None, place), Path(job["output"]))
    if distributed.current_rank().is_main:
        Path(job["output"] + ".json").write_text(json.dumps(asdict(result)))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        seen = run(job)
        Path(f"{job['output']}.rank{distributed.current_rank().index}.json").write_text(json.dumps(seen))
    distributed.leave()


if __name__ == "__main__":
    main()

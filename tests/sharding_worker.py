"""Trainings whose base is looked at on each rank: what it holds of every weight after loading, and after training.

Usage: RANKS of tests/sharding_worker.py JOB.json, as tests/training_worker.py takes it. Writes `<output>.rank<N>.json`
beside `<output>.json`.
"""

import hashlib
import json
import sys
from pathlib import Path

import training_worker

from thriftune import distributed
from thriftune.methods import METHODS
from thriftune.strategies import STRATEGIES


def held(model) -> dict[str, dict]:
    """What this rank holds of each parameter: its shard if it is divided, else all of it."""
    found = {}
    for name, parameter in model.named_parameters():
        shard = getattr(parameter, "ds_tensor", parameter).data
        content = shard.detach().contiguous().view(-1).view(dtype=__import__("torch").uint8).numpy().tobytes()
        found[name.replace("base_model.model.", "").replace(".base_layer", "")] = {
            "bytes": shard.numel() * shard.element_size(),
            "whole_bytes": getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size(),
            "gathered": parameter.numel() if hasattr(parameter, "ds_tensor") else 0,
            "digest": hashlib.sha256(content).hexdigest(),
            "trains": parameter.requires_grad,
            "dtype": str(shard.dtype),
        }
    return found


def main() -> None:
    (job,) = json.loads(Path(sys.argv[1]).read_text())
    seen = {}
    strategy, method = STRATEGIES[job["config"]["strategy"]], METHODS[job["config"]["method"]]
    load, save = strategy.load, method.save

    def loading(*arguments):
        model = load(*arguments)
        seen["loaded"] = held(model)
        return model

    def saving(trained, *arguments):
        seen["trained"] = held(trained.model)
        save(trained, *arguments)

    strategy.load, method.save = loading, saving
    training_worker.run(job)
    index = distributed.current_rank().index
    Path(f"{job['output']}.rank{index}.json").write_text(json.dumps(seen))
    distributed.leave()


if __name__ == "__main__":
    main()

"""A training with what docs/extending.md adds, in the processes of a job.

Usage: tests/extending_worker.py JOB.json, which names `model`, `dataset`, `output`, `method`, `strategy` and `ranks`.
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from conftest import run_dict
from planning import planned

from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.training.fit import Inputs, fit

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def added() -> dict:
    """Run the code of the page in its order; what it defines."""
    names: dict = {}
    for number, block in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8"))):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    return names


def config_of(method: str, strategy: str, ranks: int) -> RunConfig:
    """A run of a method under a strategy, which the schema's Literals do not know yet."""
    training = {
        "global_batch": 8, "micro_batch": 4, "max_steps": 4, "precision": "fp32", "log_every": 1, "save_dtype": "fp32",
        "learning_rate": 1e-2, "gradient_checkpointing": False,
    }  # fmt: skip
    run = RunConfig.model_validate(
        run_dict(hardware={"devices_per_node": ranks}, training=training, evaluation={"max_new_tokens": 2})
    )
    return run.model_copy(update={"method": method, "strategy": strategy})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    added()
    config = config_of(job["method"], job["strategy"], job["ranks"])
    plan = planned(config, model=Path(job["model"]))
    result = fit(Inputs(config, plan, Path(job["model"]), Path(job["dataset"])), Path(job["output"]))
    if distributed.current_rank().is_main:
        Path(job["output"] + ".json").write_text(json.dumps({"plan": asdict(plan), "result": asdict(result)}))
    distributed.leave()


if __name__ == "__main__":
    main()

"""The cost of checkpoints: the demo runs with one every 20 steps, compared with none.

Usage: python benchmarks/checkpoint_overhead.py [full] [qlora] [--steps 41] [--repeats 2]
       (after `make demo`, which fetches model and rows)

Prints seconds per step of each, in the order they ran, and the ratio. Steps are as short as the demo's: the longer a
step, the smaller the share of a checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
EVERY = 20
NEVER = 1_000_000.0
WORKFLOWS = {
    "full": ("workflows/full_finetune.py", "full_finetune"),
    "qlora": ("workflows/qlora_finetune.py", "qlora_finetune"),
}


def run(method: str, every_steps: int | None, steps: int, folder: Path) -> float:
    """Seconds per step of a demo run.

    Args:
        method: full or qlora.
        every_steps: Steps between two checkpoints; None for none at all.
        steps: Steps of the run.
        folder: Where it writes.
    """
    content = yaml.safe_load((ROOT / "configs" / f"demo-{method}.yaml").read_text(encoding="utf-8"))
    content["training"] = {**content["training"], "max_steps": steps, "log_every": 10}
    content["evaluation"] = {**content.get("evaluation", {}), "max_rows": 4, "max_new_tokens": 4}
    content["checkpoints"] = {"every_minutes": NEVER} | ({"every_steps": every_steps} if every_steps else {})
    if method == "qlora":
        content["lora"] = {**content.get("lora", {}), "merge": False}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(folder / "outputs")}
    environment.pop("THRIFTUNE_RUN_STAMP", None)
    command = [str(Path(sys.executable).parent / "pyflyte"), "run", *WORKFLOWS[method], "--config", str(file)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (metrics,) = folder.glob("outputs/*/*/metrics.json")
    training = json.loads(metrics.read_text(encoding="utf-8"))["training"]
    return float(training["seconds"]) / int(training["steps"])


def compare(method: str, steps: int, repeats: int) -> None:
    """Run both in turn, since the machine may become slower or faster meanwhile."""
    seconds: dict[str, list[float]] = {"none": [], f"every {EVERY}": []}
    for _ in range(repeats):
        for name, every in (("none", None), (f"every {EVERY}", EVERY)):
            with tempfile.TemporaryDirectory() as scratch:
                seconds[name].append(run(method, every, steps, Path(scratch)))
            print(f"{method}: {name}: {seconds[name][-1]:.3f} s per step", flush=True)
    without, with_them = (min(values) for values in seconds.values())
    print(f"{method}: {with_them / without - 1:+.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What checkpoints cost.")
    parser.add_argument("methods", nargs="*", default=list(WORKFLOWS))
    parser.add_argument("--steps", type=int, default=2 * EVERY + 1)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    for named in chosen.methods:
        compare(named, chosen.steps, chosen.repeats)

"""On one GPU: the cost of checkpoints, whether a killed run resumes to the same losses, and the memory of a run.

    python benchmarks/gpu_runs.py RESULTS.jsonl [--only "zero3 381M"] [--gib 14.56] [--steps 25] [--every 10]

Runs are planned for a T4, so they train in fp16 with loss scaling, on any GPU; torch may use only as much of its memory
as a T4 has (`--gib`). Random Llamas memorize a few rows of random tokens. Each run is trained without checkpoints, with
one every 10 steps, and with one every 10 steps and a kill -9 after the first, in fresh processes; each is compared with
the first, loss by loss. Then QLoRA trains in less memory than it needs, so that CUDA itself runs out of memory. Each
line of RESULTS.jsonl is one training.
"""

import argparse
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory_runs import Run, make_dataset, make_model, run_file

from thriftune.config.choices import STRATEGIES

NEVER = 1_000_000.0
GIB = 2**30
RUNS = (
    Run("qlora", "381M", 512, 4, checkpointing=True, precision="fp16", optimizer="paged_adamw_8bit", lora_rank=16),
    Run("zero2", "381M", 512, 4, checkpointing=True, precision="fp16"),
    Run("zero3", "381M", 512, 4, checkpointing=True, precision="fp16"),
    Run("zero3_offload_all", "381M", 512, 4, checkpointing=True, precision="fp16"),
)
# Share of the memory that QLoRA needs, so that the micro batch has to become smaller.
TOO_LITTLE = 0.9


def content_for_t4(run: Run, steps: int, every: int | None) -> dict[str, Any]:
    """The run file of a run on one T4.

    Args:
        run: The run.
        steps: Optimizer steps.
        every: Steps between two checkpoints; None for no checkpoints.
    """
    content = run_file(run)
    content["hardware"] = {"device": "T4", "instance": "g4dn.2xlarge"}
    content["training"] |= {"max_steps": steps, "log_every": 1, "learning_rate": 1e-3, "save_dtype": "auto"}
    content["evaluation"] |= {"every_steps": steps}  # a validation in between would count as a part of a step
    content["checkpoints"] = {"every_minutes": NEVER} | ({"every_steps": every} if every else {})
    return content


@contextmanager
def prepared(run: Run, work: Path, steps: int, every: int | None) -> Iterator[Path]:
    """A folder with everything that a training needs, removed at the end."""
    from thriftune.config import ModelConfig, RunConfig
    from thriftune.models import architecture
    from thriftune.planning import catalogue, planner

    config = RunConfig.model_validate(content_for_t4(run, steps, every))
    make_model(run.model, work / run.model)
    shape = architecture.of(ModelConfig(source=str(work / run.model)))
    plan = planner.plan(config, catalogue.load(), architecture=shape)
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        make_dataset(run, folder / "dataset")
        (folder / "job.pickle").write_bytes(pickle.dumps((config, plan, work / run.model)))
        yield folder


def start(folder: Path, attempt: int, gib: float) -> subprocess.Popen[bytes]:
    """Train in a separate process."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    _, plan, _ = pickle.loads((folder / "job.pickle").read_bytes())
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    # The others have no process group.
    group = {**alone, "MASTER_PORT": port} if STRATEGIES[plan.strategy].is_distributed else {}
    command = [sys.executable, __file__, "--worker", str(folder), str(attempt), str(gib)]
    with (folder / f"log-{attempt}").open("w") as log:
        return subprocess.Popen(command, env={**os.environ, **group}, stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes], folder: Path, attempt: int) -> dict[str, Any]:
    """The measurements of a training.

    Raises:
        RuntimeError: It failed; the message is the end of its log.
    """
    if process.wait():
        raise RuntimeError((folder / f"log-{attempt}").read_text()[-4000:])
    found: dict[str, Any] = json.loads((folder / f"result-{attempt}.json").read_text())
    return found


def work_in_process(folder: Path, attempt: int, gib: float) -> None:
    """Train in this process, and write what was measured."""
    import logging

    import torch
    from transformers import TrainerCallback, trainer

    from thriftune import distributed
    from thriftune.checkpoints.location import CheckpointLocation
    from thriftune.training.fit import Inputs, fit

    logging.basicConfig(level=logging.INFO)
    config, plan, model = pickle.loads((folder / "job.pickle").read_bytes())
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / torch.cuda.get_device_properties(0).total_memory))
    place = CheckpointLocation(str(folder / "store"), folder / f"disk-{attempt}", 30.0)
    ends: list[float] = []

    class Clock(TrainerCallback):
        """Records when each step was done."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    trainer.DEFAULT_CALLBACKS.append(Clock)
    result = fit(Inputs(config, plan, model, folder / "dataset", checkpoints=place), folder / f"out-{attempt}")
    (folder / f"result-{attempt}.json").write_text(json.dumps({
        **asdict(result), "ends": ends, "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }))  # fmt: skip
    distributed.leave()


def killed_and_resumed(folder: Path, gib: float, every: int) -> dict[str, Any]:
    """Kill a training right after its first checkpoint, and resume it in another process."""
    process = start(folder, 0, gib)
    while not (folder / f"store-0/checkpoint-{every}/manifest.json").exists():
        if process.poll() is not None:
            raise RuntimeError((folder / "log-0").read_text()[-4000:])
        time.sleep(0.01)
    process.kill()
    process.wait()
    return finish(start(folder, 1, gib), folder, 1)


def line(run: Run, case: str, result: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The values of a training that are kept."""
    resources, ends = result["resources"], result["ends"]
    return {
        "run": run.name, "case": case, "step_seconds": statistics.median(b - a for a, b in pairwise(ends)),
        "resumed_at": result["resumed_at"], "losses": result["losses"], "memory": result["memory"],
        "reserved_gib": result["reserved_gib"], "halvings": result["halvings"],
        "nvml_gib": max(resources["device"], default=None), **more,
    }  # fmt: skip


def measure(run: Run, work: Path, steps: int, every: int, gib: float, keep: Any) -> None:
    """Do all trainings of a run."""
    with prepared(run, work, steps, None) as folder:
        expected = finish(start(folder, 0, gib), folder, 0)
        keep(line(run, "no checkpoints", expected))

    def difference(result: dict[str, Any]) -> float:
        after = slice(result["resumed_at"], None)
        return max(abs(a - b) for a, b in zip(expected["losses"][after], result["losses"][after], strict=True))

    with prepared(run, work, steps, every) as folder:
        saved = finish(start(folder, 0, gib), folder, 0)
        files = (folder / f"store-0/checkpoint-{every}").rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        seconds = [b - a for a, b in pairwise(saved["ends"])]
        stood_still = seconds[every - 1] - statistics.median(seconds)
        costs = {"checkpoint_gib": size / GIB, "stood_still_seconds": stood_still, "difference": difference(saved)}
        keep(line(run, f"one every {every} steps", saved, **costs))
    with prepared(run, work, steps, every) as folder:
        resumed = killed_and_resumed(folder, gib, every)
    keep(line(run, "killed and resumed", resumed, difference=difference(resumed)))
    if run.method == "qlora":
        less = saved["memory"]["device"] * TOO_LITTLE
        with prepared(run, work, steps, every) as folder:
            tight = finish(start(folder, 0, less), folder, 0)
        keep(line(run, f"in {less:.2f} GiB", tight, difference=difference(tight)))


def main() -> None:
    """Do all trainings of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--gib", type=float, default=14.56, help="GiB of the GPU that torch may take")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--every", type=int, default=10)
    chosen = parser.parse_args()

    def keep(found: dict[str, Any]) -> None:
        with chosen.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        shown = {key: value for key, value in found.items() if key != "losses"}
        sys.stdout.write(json.dumps({**shown, "last_loss": found["losses"][-1]}) + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            if chosen.only in run.name:
                measure(run, Path(folder), chosen.steps, chosen.every, chosen.gib, keep)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_in_process(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()

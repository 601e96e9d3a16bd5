"""On one GPU: every pair of a method and a strategy, trained in fp16 by one process.

    python benchmarks/gpu_pairs.py [--gib 14.56] [--steps 12] [--minutes 8] [--list]

The runs are planned for a T4, so they train in fp16 with loss scaling (and NF4 stored as fp16 where 4-bit weights are
divided), on any GPU; torch may use only as much of its memory as a T4 has (`--gib`). A random Llama of 381M parameters
memorizes a few rows of random tokens, each pair in a fresh process. Prints one table: seconds per step, GiB that torch
allocated at its peak beside the planner's prediction, the losses of the first and the last step, and steps that the
loss scale skipped. A pair that fails says why in its row. No pair is begun after `--minutes`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from gpu_runs import finish, prepared, start
from memory_runs import ADAPTERS, Run

from thriftune.config.choices import METHODS, STRATEGIES

_HEAD = ("pair", "s/step", "peak GiB", "predicted", "off", "first loss", "last loss", "remark")
# One file of ZeRO for each kind of result; the stages differ over several ranks only.
_ZERO = {"model": ("zero2", "zero3"), "adapter": ("zero3",)}
_RANK = 16


def runs() -> Iterator[Run]:
    """Every pair that the tables allow."""
    for method, has in METHODS.items():
        rank = _RANK if method in ADAPTERS else 0
        for name, facts in STRATEGIES.items():
            if method in facts.refuses:
                continue
            for strategy in _ZERO[has.result] if facts.section == "zero" else (name,):
                yield Run(
                    method, "381M", 512, 2, checkpointing=True, precision="fp16", lora_rank=rank, strategy=strategy
                )


def measured(run: Run, work: Path, steps: int, gib: float) -> tuple[str, ...]:
    """Train a pair once; its row of the table."""
    name = f"{run.method}, {run.strategy}"
    try:
        with prepared(run, work, steps, None) as folder:
            found = finish(start(folder, 0, gib), folder, 0)
    except RuntimeError as error:
        return (name, *["-"] * 6, " ".join(str(error).split())[-200:])
    memory, losses = found["memory"], found["losses"]
    seconds = statistics.median(b - a for a, b in pairwise(found["ends"]))
    peak, planned = memory["device"], memory["predicted_device"]
    remark = f"{len(found['skipped_steps'])} steps skipped" if found["skipped_steps"] else ""
    numbers = (f"{seconds:.3f}", f"{peak:.2f}", f"{planned:.2f}", f"{planned / peak - 1:+.0%}")
    return (name, *numbers, f"{losses[0]:.3f}", f"{losses[-1]:.3f}", remark)


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=14.56, help="GiB of the GPU that torch may take")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=8.0, help="no pair is begun after so many")
    parser.add_argument("--list", action="store_true", help="only name the pairs")
    chosen = parser.parse_args()
    if chosen.list:
        sys.stdout.writelines(f"{run.name}\n" for run in runs())
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("This machine has no GPU.")
    sys.stdout.write(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}\n\n")
    sys.stdout.write(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}\n")
    ends_at = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as folder:
        for run in runs():
            is_late = time.monotonic() > ends_at
            late = (f"{run.method}, {run.strategy}", *["-"] * 6, "no time left")
            row = late if is_late else measured(run, Path(folder), chosen.steps, chosen.gib)
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Run both recipes on this machine, with the commands a person would type, and print both summaries at the end.

Last comes the time of a step: as it was planned, as it was, and as the next run's plan would have it.

Usage: make demo
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tasks.plan import planned
from tasks.run_files import read
from thriftune.config import RunConfig
from thriftune.inference.report import RunMetrics, metrics_from_json, summary_table
from thriftune.planning.time.report import duration

COMMANDS = {
    "demo-full": "pyflyte run workflows/full_finetune.py full_finetune --config configs/demo-full.yaml",
    "demo-qlora": "pyflyte run workflows/qlora_finetune.py qlora_finetune --config configs/demo-qlora.yaml",
}


def say(text: str) -> None:
    """Write to the terminal at once, so that the order with the output of the commands is kept."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(command: str) -> int:
    """Run a command to its end. It handles Ctrl-C and SIGTERM itself, and prints how to continue.

    Returns:
        Its exit status.
    """
    # pyflyte's last line repeats the whole result, which the summaries show better.
    with subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL) as process:
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal sent it to the command too


def main() -> int:
    """Run the commands one after the other; stop at the first that fails."""
    started = time.monotonic()
    for name, command in COMMANDS.items():
        say(f"\n=== {name}\n$ {command}")
        returncode = run(command)
        if returncode:
            say(f"{name} ended with exit status {returncode}; see the reason above.")
            return returncode
    say(f"\n=== Both recipes ran in {time.monotonic() - started:.0f} s\n")
    finished = []
    for name in COMMANDS:
        newest = max(Path("outputs").glob(f"{name}/*/metrics.json"))  # folders are named by start time
        metrics = metrics_from_json(json.loads(newest.read_text(encoding="utf-8")))
        say(summary_table(metrics))
        before, after = metrics.training.before, metrics.training.after
        if before is None or not after.loss < before.loss:
            say(f"{name}: the held-out loss did not fall. Please report this.")
            return 1
        finished.append(metrics)
    say_times(finished)
    return 0


def say_times(finished: list[RunMetrics]) -> None:
    """Write the time of a step of each run: planned before it, measured, and planned now that the ledger has it."""
    say("Time of a step: planned, then measured, and what a plan says now that both runs are in the ledger")
    for metrics in finished:
        config = RunConfig.model_validate(read(f"configs/{metrics.name}.yaml", "--config"))
        again = planned(config, on_this_machine=True).time
        if metrics.timing is None or again is None:
            say(f"  {metrics.name}: not known")
            continue
        times = (metrics.timing.planned, metrics.timing.measured, again.step.seconds)
        first, measured, now = map(duration, times)
        say(f"  {metrics.name}: planned {first}, measured {measured}, planned now {now} ({again.leans_on})")


if __name__ == "__main__":
    sys.exit(main())

"""Run both recipes on this machine, with the commands a person would type, and print both summaries at the end.

Usage: make demo
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from thriftune.inference.report import metrics_from_json, summary_table

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
    for name in COMMANDS:
        newest = max(Path("outputs").glob(f"{name}/*/metrics.json"))  # folders are named by start time
        metrics = metrics_from_json(json.loads(newest.read_text(encoding="utf-8")))
        say(summary_table(metrics))
        before, after = metrics.training.before, metrics.training.after
        if before is None or not after.loss < before.loss:
            say(f"{name}: the held-out loss did not fall. Please report this.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

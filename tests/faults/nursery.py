"""A process with all libraries in memory, which forks one attempt after the other: importing them takes far longer.

Usage: python -m faults.nursery. Reads lines `JOB.json<tab>LOG<tab>VARIABLE=value ...`, answers each with the process
id of the attempt, and writes the exit status of every attempt to `JOB.json.status` when it has ended. Every attempt
leads a process group of its own, and ends with this process at the latest.
"""

import os
import select
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

# In memory before any fork.
import bitsandbytes  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
import torch
from deepspeed.checkpoint import ds_to_universal  # noqa: F401

from faults import attempt


def fork(line: str) -> tuple[int, str]:
    """Begin an attempt; its process id and job file."""
    file, log, *variables = line.rstrip("\n").split("\t")
    child = os.fork()
    if child:
        return child, file
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(dict(variable.split("=", 1) for variable in variables))
        status = attempt.run(file)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def reap(running: dict[int, str]) -> None:
    """Write down how attempts ended."""
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            file = Path(f"{running.pop(child)}.status")
            file.with_suffix(".partial").write_text(str(os.waitstatus_to_exitcode(status)))
            file.with_suffix(".partial").rename(file)


def end(running: dict[int, str]) -> None:
    """End what is left, with its workers."""
    for group in running:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Fork until nobody asks any more."""
    torch.set_num_threads(1)
    running: dict[int, str] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        reap(running)
        if not select.select([sys.stdin], [], [], 0.05)[0]:
            continue
        line = os.read(0, 1 << 16).decode()  # the tests wait for each answer: one line at a time
        if not line:
            end(running)
            return
        child, file = fork(line)
        running[child] = file
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

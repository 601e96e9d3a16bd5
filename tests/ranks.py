"""Ranks of a training, forked from one process that has the libraries in memory, in place of one torchrun for each.

torchrun imports torch, transformers and DeepSpeed again in its agent and in every rank, which takes far longer than
what the tests train. A rank is a process of its own here too, with the variables that torchrun sets, and talks over
gloo; torchrun itself starts the ranks of test_distributed.py and test_operators.py.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

# No training of the tests takes longer, also where two processors are busy with other things.
LONGEST_SECONDS = 240.0
_EVERYWHERE = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class _Asked:
    script: str
    arguments: list[str]
    ranks: int
    log: str
    environment: dict[str, str]


def run(ranks: int, script: Path, *arguments: str | Path) -> None:
    """Run a script as `torchrun --nproc_per_node RANKS SCRIPT ARGUMENTS` does, to its end.

    Raises:
        AssertionError: A rank failed, or took too long; says what they printed.
    """
    process = _warm()
    log = Path(arguments[0]).with_suffix(".log")
    environment = {**os.environ, **_EVERYWHERE}
    asked = _Asked(str(script), [str(argument) for argument in arguments], ranks, str(log), environment)
    process.stdin.write(json.dumps(asdict(asked)) + "\n")
    answer = process.stdout.readline()
    assert answer, "the process that ranks are forked from has ended"
    assert json.loads(answer) == [0] * ranks, log.read_text(errors="replace")[-3000:]


@cache
def _warm() -> subprocess.Popen[str]:
    """The process that ranks are forked from; it ends with this one, as its input does."""
    pipe = subprocess.PIPE
    command, environment = [sys.executable, __file__], {**os.environ, **_EVERYWHERE}
    process = subprocess.Popen(command, env=environment, text=True, bufsize=1, stdin=pipe, stdout=pipe)
    assert process.stdout.readline() == "ready\n"
    return process


def _fork(asked: _Asked, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        out = os.open(asked.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, place in enumerate((nothing, out, out)):
            os.dup2(place, number)
        numbers = {
            "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0,
            "WORLD_SIZE": asked.ranks, "LOCAL_WORLD_SIZE": asked.ranks, "MASTER_PORT": port,
        }  # fmt: skip
        os.environ.clear()
        os.environ.update(asked.environment, MASTER_ADDR="127.0.0.1")
        os.environ.update({name: str(number) for name, number in numbers.items()})
        sys.argv = [asked.script, *asked.arguments]
        sys.path[0] = str(Path(asked.script).parent)
        runpy.run_path(asked.script, run_name="__main__")
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _statuses(children: list[int]) -> list[int]:
    """How every rank ended; the first that fails ends the others, as does the time."""
    ended: dict[int, int] = {}
    deadline = time.monotonic() + LONGEST_SECONDS
    while len(ended) < len(children):
        for child in set(children) - ended.keys():
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if any(ended.values()) or time.monotonic() > deadline:
            for child in set(children) - ended.keys():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[child] for child in children]


def main() -> None:
    """Fork until nobody asks any more."""
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("ready\n")
    for line in sys.stdin:
        asked = _Asked(**json.loads(line))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = [_fork(asked, rank, port) for rank in range(asked.ranks)]
        answers.write(json.dumps(_statuses(children)) + "\n")


if __name__ == "__main__":
    main()

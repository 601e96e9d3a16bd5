"""Ranks of a training, forked from one process that has the libraries in memory, in place of one torchrun for each.

torchrun imports torch, transformers and DeepSpeed again in its agent and in every rank, which takes far longer than
what the tests train. A rank is a process of its own here too, with the variables that torchrun sets, and talks over
gloo; torchrun itself starts the ranks of test_distributed.py and test_operators.py.
"""

import os
import signal
import socket
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from starting import Process, Warm

# No training of the tests takes longer, also where two processors are busy with other things.
LONGEST_SECONDS = 240.0
_EVERYWHERE = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
_LIBRARIES = ("deepspeed", "peft", "torch", "transformers.trainer")
_FOLDER = tempfile.TemporaryDirectory(prefix="ranks-")


def run(ranks: int, script: Path, *arguments: str | Path) -> None:
    """Run a script as `torchrun --nproc_per_node RANKS SCRIPT ARGUMENTS` does, to its end.

    Raises:
        AssertionError: A rank failed, or took too long; says what they printed.
    """
    log, command = Path(arguments[0]).with_suffix(".log"), [sys.executable, str(script), *map(str, arguments)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    numbers = {"GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    shared = {"TMPDIR": tempfile.gettempdir(), **os.environ, **_EVERYWHERE, "MASTER_ADDR": "127.0.0.1"}
    shared |= {name: str(number) for name, number in numbers.items()}
    started = [
        _warm().start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, Path.cwd(), log)
        for rank in range(ranks)
    ]
    assert _statuses(started) == [0] * ranks, log.read_text(errors="replace")[-3000:]


@cache
def _warm() -> Warm:
    """The process that ranks are forked from; it ends with this one."""
    environment, folder = {**os.environ, **_EVERYWHERE}, Path(_FOLDER.name, "warm")
    return Warm(Path(sys.executable), _LIBRARIES, environment, folder, like_new=False)


def _statuses(ranks: list[Process]) -> list[int]:
    """How every rank ended; the first that fails ends the others, as does the time."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while None in (found := [rank.poll() for rank in ranks]):
        if any(found) or time.monotonic() > deadline:
            for rank in ranks:
                rank.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    return [rank.wait() for rank in ranks]

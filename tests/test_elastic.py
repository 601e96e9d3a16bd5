"""Nodes that do not come: the attempt ends after the time that the platform gives, and Flyte tries again."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# One node of two, really waiting; what it would train does not matter.
_ALONE = """
from contextlib import nullcontext
from dataclasses import dataclass, field
from flytekit.exceptions.user import FlyteRecoverableException
from tasks import live
from tasks.train import train_2

live.watching = lambda *_: nullcontext()  # there is no run that a page could be of

@dataclass
class Hardware:
    is_gpu: bool = False

@dataclass
class Plan:
    processes_per_node: int = 1
    nodes: int = 2
    hardware: Hardware = field(default_factory=Hardware)
    strategy: str = "zero"

try:
    train_2.execute(config=None, plan=Plan(), cache_key="", record="", model=None, dataset=None)
except FlyteRecoverableException as error:
    print("tried again:", error)
"""


def test_a_rendezvous_that_times_out_is_tried_again():
    """The plugin calls it the user's error and gives up, whatever the retries; the node may only have been late."""
    environment = {**os.environ, "THRIFTUNE_RENDEZVOUS_SECONDS": "2"}
    command = [sys.executable, "-c", _ALONE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    said = " ".join(done.stdout.split())
    assert "tried again" in said, done.stderr[-2000:]
    assert "did not find each other after 2 s at most: RendezvousTimeoutError" in said

"""A cluster of one machine, and the command line that talks to it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from flyteidl.admin.execution_pb2 import ExecutionClosure
from flyteidl.core.execution_pb2 import WorkflowExecution

from cluster import image
from cluster.control_plane import ControlPlane
from cluster.noise import noise
from cluster.records import Run

PYFLYTE = Path(sys.executable).parent / "pyflyte"
ROOT = Path(__file__).parent.parent.parent
TOKEN, WANDB_KEY = "hf_PlantedTokenThatMustNotAppear", "0123456789abcdefPlantedKeyThatMustNotAppear"
SECRETS = {"THRIFTUNE_HUB_SECRET": "hub/token", "THRIFTUNE_WANDB_SECRET": "wandb/key"}
# How a run is started; the image is a name only.
IN_CLUSTER = ("--image", "example:1", "--copy", "all", "--wait", "--poll-interval", "1")
_LONGEST_RUN = 1200
# One kind of node, which the description CLUSTER has too; its price is not that of the shipped ones.
CATALOGUE = """
currency: USD
region: here
as_of: 2026-01-01
nodes:
  cpu.small: {device: CPU, gpus: 0, gpu_gib: 0, bf16: true, interconnect: none, host_gib: 16, vcpus: 4, disk_gb: 50,
              network_gbps: 10, price_per_hour: 0.1}
"""


def done(cluster: ControlPlane, name: str | None = None, *, succeeded: bool = True) -> Run:
    """An execution that succeeded (or did not), the newest if none is named; waits for its end."""
    run = cluster.runs[name or list(cluster.runs)[-1]]
    closure = ended(run)
    is_well = closure.phase == WorkflowExecution.SUCCEEDED
    assert is_well == succeeded, f"{closure.error}{cluster.pods.log(run.name)[-8000:]}"
    return run


def ended(run: Run) -> ExecutionClosure:
    """How an execution ended; waits for it."""
    end = time.monotonic() + _LONGEST_RUN
    while run.execution.closure.phase == WorkflowExecution.RUNNING and time.monotonic() < end:
        time.sleep(0.2)
    return run.execution.closure


class Pyflyte(Protocol):
    """Runs the real command line: `pyflyte("run", "--remote", ..., cwd=folder)`."""

    def __call__(
        self, *arguments: str, cwd: Path = ROOT, check: bool = True, settings: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="module")
def libraries() -> tuple[str, ...]:
    """What pods find in memory; modules whose pods train have more."""
    return image.OF_FLYTEKIT


@pytest.fixture(scope="module")
def cluster(libraries: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with an empty bucket, and the secrets that a cluster has for the tasks that ask."""
    with ControlPlane(tmp_path_factory.mktemp("cluster"), libraries=libraries) as control_plane:
        control_plane.pods.secrets.update({("hub", "token"): TOKEN, ("wandb", "key"): WANDB_KEY})
        yield control_plane


@pytest.fixture(scope="module")
def pyflyte(cluster: ControlPlane) -> Iterator[Pyflyte]:
    """The command line, configured for the cluster, with a catalogue of CPU nodes in the bucket.

    At the end, what it printed and the logs of all pods are looked at: nothing may be said for nothing.
    """
    printed: list[str] = []
    catalogue = cluster.store.put(cluster.store.uri("catalogue.yaml"), CATALOGUE.encode())
    usual = {"THRIFTUNE_CATALOGUE": catalogue, "THRIFTUNE_PREPARE_CPU": "1", "COLUMNS": "200", "HF_TOKEN": ""}
    environment = {**os.environ, **usual, **cluster.client}
    for name in list(environment):
        if name in ("THRIFTUNE_RUN_STAMP", "THRIFTUNE_OUTPUTS", "FLYTE_IMAGE") or name.startswith("AWS_"):
            del environment[name]

    def run(
        *arguments: str, cwd: Path = ROOT, check: bool = True, settings: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        command, given = [str(PYFLYTE), *arguments], {**environment, **settings}
        done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=900)
        if check:
            newest = list(cluster.runs)[-1:]
            logs = "".join(cluster.pods.log(name) for name in newest)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs[-8000:]
        if done.returncode == 0:  # else it printed what went wrong
            printed.append(done.stdout + done.stderr)
        return done

    yield run
    assert noise(cluster, printed) == []


@pytest.fixture(scope="module")
def sources(cluster: ControlPlane, tiny_model_dir: Path, chat_rows_file: Path) -> tuple[str, str]:
    """The tiny model and its rows, in the bucket."""
    store = cluster.store
    model = store.upload(tiny_model_dir, store.uri("models", "tiny"))
    return model, store.upload(chat_rows_file, store.uri("data", "chat.jsonl"))

"""Pods: processes of their own, with an empty directory each, the image's libraries and nothing of the checkout."""

import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import TaskNodeOverrides
from google.protobuf.json_format import MessageToDict
from specification.pods import Pod, merged
from starting import Fresh, Process, Warm
from warm import without_env

from cluster import image
from cluster.description import Description, quantity

# A tiny model takes seconds; a pod that takes longer waits for something that never comes.
POD_SECONDS = 300
# The operator calls a job done as soon as one of its pods is; the engine looks at the job seconds later.
_NOTICE_SECONDS = 10
# Tests wait for it; a pod asks for more.
_GRACE_SECONDS = 30
_POLL_SECONDS = 0.1
_TEMPLATE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_POD_KINDS = ("python-task", "pytorch")
_JOBS = "pytorch"
# Flyte's program that unpacks the uploaded code starts one of those that run it.
_UNPACKING, _RUNNING = "pyflyte-fast-execute", ("pyflyte-execute", "pyflyte-map-execute")
# Of the machine that all pods share here, whatever a cluster or a task says.
MACHINE = {
    "OMP_NUM_THREADS": "1",  # it is a small one
    "HF_HUB_OFFLINE": "1",
    # Operators that DeepSpeed compiles are part of an image.
    "TORCH_EXTENSIONS_DIR": str(Path.home() / ".cache" / "torch_extensions"),
    "AWS_EC2_METADATA_DISABLED": "true",  # else a missing key is looked for on the network
}


@dataclass(frozen=True)
class Place:
    """Where one attempt of a task reads and writes, as URIs."""

    inputs: str
    outputs: str
    raw: str
    previous_checkpoint: str = ""

    @property
    def checkpoint(self) -> str:
        return f"{self.raw}/_flytecheckpoints"

    def render(self, argument: str) -> str:
        """An argument of a container with the engine's templates filled in."""
        words = {
            "input": self.inputs,
            "outputprefix": self.outputs,
            "rawoutputdataprefix": self.raw,
            "checkpointoutputprefix": self.checkpoint,
            "prevcheckpointprefix": self.previous_checkpoint or '""',
        }
        return _TEMPLATE.sub(lambda match: words[match[1].lower()], argument)


@dataclass
class _Running:
    name: str
    process: Process
    directory: Path
    asked_bytes: float
    is_forked: bool
    peak_bytes: int = 0

    def look(self) -> int | None:
        """Its exit status, None while it runs; and what its processes held at most so far, together."""
        if not self.is_forked:  # else its libraries are in memory that it shares
            self.peak_bytes = max(self.peak_bytes, _held_at_most(self.process.pid))
        return self.process.poll()

    def remove(self) -> None:
        """What a container leaves: nothing."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass
class Pods:
    """The machines of the cluster.

    Attributes:
        programs: The bin directory of the image.
        cluster: Nodes and plugins.
        variables: What the cluster sets in every pod.
        logs: Folder of one file per pod.
        starts: What starts their processes.
        secrets: What is in the cluster's secrets, by group and key. A pod starts without one that is not there.
        memory: Bytes that each ended pod held at most, and that it had asked for; if each is started anew.
    """

    programs: Path
    cluster: Description
    variables: Mapping[str, str]
    logs: Path
    starts: Fresh | Warm
    secrets: dict[tuple[str, str], str] = field(default_factory=dict)
    memory: dict[str, tuple[int, float]] = field(default_factory=dict)
    _running: list[_Running] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, name: str, task: TaskTemplate, overrides: TaskNodeOverrides, place: Place, environment: Mapping[str, str]
    ) -> list[int]:
        """Run one attempt of a task to its end.

        Args:
            name: Of the attempt; its pods are named after it.
            task: The task.
            overrides: What its node of the workflow says in place of the task.
            place: Where it reads and writes.
            environment: What the engine tells it.

        Returns:
            The exit status of each pod, negative for a signal.

        Raises:
            UnschedulableError: No node takes its pods.
        """
        if task.type not in _POD_KINDS:
            raise NotImplementedError(f"{task.id.name} is a task of type {task.type}")
        pod = merged(task, overrides)
        self.cluster.place(pod)
        arguments, own = _container(pod)
        command = [place.render(argument) for argument in arguments]
        # Without its plugin, Flyte runs a job as what any other task is: one pod.
        jobs = _workers(name, task) if task.type == _JOBS and _JOBS in self.cluster.plugins else {name: {}}
        given = {**own, **environment, **self._secrets_of(task), **self.variables}
        asked = quantity({**self.cluster.defaults, **pod.resources("requests")}["memory"])
        pods = [self._start(worker, command, {**given, **extra, **MACHINE}, asked) for worker, extra in jobs.items()]
        try:
            return _wait(pods)
        finally:
            for pod in pods:
                pod.remove()
                self.memory[pod.name] = (pod.peak_bytes, pod.asked_bytes)
                with self._lock:
                    self._running.remove(pod)

    def close(self) -> None:
        """End every pod."""
        with self._lock:
            for pod in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(pod.process.pid, signal.SIGKILL)

    def end(self, run: str) -> None:
        """Do to the pods of a run what Kubernetes does to deleted ones: a SIGTERM, and after their grace a SIGKILL."""
        with self._lock:
            mine = [pod for pod in self._running if pod.name.startswith(f"{run}-")]
        for pod in mine:
            pod.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and any(pod.process.poll() is None for pod in mine):
            time.sleep(_POLL_SECONDS)
        for pod in mine:
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)

    def strike(self, name: str, number: int) -> None:
        """Do to a pod what happens on spot nodes: a SIGTERM goes to its first process, a SIGKILL ends all of them."""
        with self._lock:
            (pod,) = [pod for pod in self._running if pod.name == name]
        if number == signal.SIGKILL:
            os.killpg(pod.process.pid, number)
        else:
            pod.process.send_signal(number)

    def log(self, name: str) -> str:
        """What the pods whose names begin so printed."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.logs.glob(f"{name}*.log")))

    def _secrets_of(self, task: TaskTemplate) -> dict[str, str]:
        """What the webhook puts into a pod: only the secrets that the task asks for, by the name it asks for.

        Source: flyteorg/flyte, flytepropeller/pkg/webhook/k8s_secrets.go; flytekit's `SecretsManager` reads the prefix.
        """
        found = {}
        for secret in task.security_context.secrets:
            value = self.secrets.get((secret.group, secret.key))
            if value is not None:
                found[secret.env_var or f"_FSEC_{secret.group}_{secret.key}".upper()] = value
        return found

    def _start(self, name: str, command: list[str], environment: Mapping[str, str], asked: float) -> _Running:
        directory = Path(tempfile.mkdtemp(prefix="pod-"))
        for part in ("work", "home", "tmp"):
            (directory / part).mkdir()
        everything = {
            "PATH": image.path(self.programs),
            "HOME": str(directory / "home"),
            "TMPDIR": str(directory / "tmp"),
            "HOSTNAME": name,
            **environment,
        }
        program = [str(self.programs / command[0]), *command[1:]]
        log = self.logs / f"{name}.log"
        then = next((word for word in command if word in _RUNNING), "") if command[0] == _UNPACKING else ""
        process = self.starts.start(program, everything, directory / "work", log, then=then)
        pod = _Running(name, process, directory, asked, isinstance(self.starts, Warm))
        with self._lock:
            self._running.append(pod)
        return pod


def _wait(pods: list[_Running]) -> list[int]:
    """Wait as the training operator does: until one pod succeeds, or one fails (they are never restarted)."""
    deadline = time.monotonic() + POD_SECONDS
    while time.monotonic() < deadline:
        states = [pod.look() for pod in pods]
        if None not in states or any(state not in (None, 0) for state in states):
            break
        if 0 in states:
            deadline = min(deadline, time.monotonic() + _NOTICE_SECONDS)
        time.sleep(_POLL_SECONDS)
    return [pod.process.poll() if pod.process.poll() is not None else -signal.SIGKILL for pod in pods]


def _held_at_most(pid: int) -> int:
    """Bytes that a process and those it started held at most until now, as far as they still run: VmHWM of each."""
    held = 0
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = re.search(r"VmHWM:\s+(\d+) kB", status)  # a process that has ended has none
                held += int(found[1]) * 1024 if found else 0
    return held


def _workers(name: str, task: TaskTemplate) -> dict[str, dict[str, str]]:
    """The pods of a PyTorchJob, and what the training operator sets in each of an elastic one.

    Source: kubeflow/training-operator, pkg/controller.v1/pytorch/elastic.go. Its worker-0 has an address of its own;
    here all pods share the loopback, and a port that is free stands for 23456.
    """
    custom = MessageToDict(task.custom)
    elastic = custom["elasticConfig"]
    shared = {
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{_free_port()}",
        "PET_RDZV_BACKEND": str(elastic["rdzvBackend"]),
        "PET_NNODES": f"{int(elastic['minReplicas'])}:{int(elastic['maxReplicas'])}",
        "PET_NPROC_PER_NODE": str(int(elastic["nprocPerNode"])),
        "PET_MAX_RESTARTS": str(int(elastic.get("maxRestarts", 0))),
        "PYTHONUNBUFFERED": "1",
        "_F_DES": "Earliest",
    }
    names = [f"{name}-worker-{index}" for index in range(int(custom["workerReplicas"]["replicas"]))]
    return {pod: {**shared, "_F_WN": pod} for pod in names}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _container(pod: Pod) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of a pod's primary container."""
    container = pod.container
    environment = {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}
    command, added = without_env([*container.get("command", ()), *container.get("args", ())])
    return command, environment | added

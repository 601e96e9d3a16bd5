"""Warnings and errors in what pods and command lines printed that are not about the run."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from flyteidl.core.execution_pb2 import TaskExecution

from cluster.control_plane import ControlPlane

# Levels as loggers write them (flytekit's JSON, ours, DeepSpeed's, torch's), warnings, and what Python says on its own.
_LOUD = re.compile(
    r"\b(WARNING|WARN|ERROR|CRITICAL|FATAL)\b|\w(Warning|Error): |^\[?\w*\]?:?[WEF]\d{4} \d\d:"
    r"|Traceback \(most recent|Exception ignored|never retrieved|Unclosed|leaked (semaphore|shared)"
)
# What is about the runs of these tests. A warning of ours that is new has to be named here.
_ABOUT_THE_RUN = re.compile(
    r" WARNING (THRIFTUNE_NOTIFY is not set"
    r"|Told to stop \("
    r"|An earlier run has trained this"
    r"|The checkpoint of step \d+ could not be saved, training goes on: "
    r"(node 1 uploaded no part|The ranks lost each other)"
    r"|A checkpoint cannot be used: .* its upload was never finished"
    r"|The plan cannot be served from the cache"
    r"|[\d.]+ % of the items of \S+ are among the rows to train on"
    r"|.* may not be read, and is made anew)"
    # The same as tasks/log.py leaves out of torch's Python, by its C++, which no filter reaches: a node found the store
    # of its job, which was done, gone with the node that held it. Which call finds it differs: these are all it has.
    r"|TCPStore\.cpp:\d+\] \[c10d\] (recvValue|recvValueWithTimeout|recvVector|sendBytes) failed on SocketImpl"
)
# What flytekit and torch say of an attempt that failed, also on the nodes that did not cause it.
_ABOUT_A_FAILURE = re.compile(
    r'"name": "flytekit", "levelname": "ERROR"|^\[?\w*\]?:?[WEF]\d{4} \d\d:|^ *Traceback \(most recent'
)
# Of somebody's project that has none of our code (tests/cluster/example).
_NOT_OURS = "example."


def noise(cluster: ControlPlane, printed: Iterable[str]) -> list[str]:
    """What nobody needs to read.

    Args:
        cluster: The logs of all its pods are looked at.
        printed: What command lines printed that did what they were asked for.
    """
    found = [line for text in printed for line in loud(text)]
    for log, failed in _logs(cluster):
        lines = loud(log.read_text(errors="replace"))
        found += [f"{log.name}: {line}" for line in lines if not (failed and _ABOUT_A_FAILURE.search(line))]
    return found


def loud(text: str) -> list[str]:
    """The lines of a log that are warnings or errors, and not about the runs of these tests."""
    return [line for line in text.splitlines() if _LOUD.search(line) and not _ABOUT_THE_RUN.search(line)]


def _logs(cluster: ControlPlane) -> Iterator[tuple[Path, bool]]:
    """The log of every pod, and whether its attempt failed."""
    for run in cluster.runs.values():
        for record in run.nodes.values():
            for number, attempt in enumerate(record.attempts):
                if not attempt.execution.id.task_id.name.startswith(_NOT_OURS):
                    name = f"{run.name}-{record.execution.id.node_id}-{number}"
                    failed = attempt.execution.closure.phase != TaskExecution.SUCCEEDED
                    for pod in (f"{name}.log", f"{name}-worker-*.log"):
                        yield from ((log, failed) for log in cluster.pods.logs.glob(pod))

"""Classify an error, or its traceback as text, by whose fault it is, which decides about another attempt.

The texts of gloo, the store, the allocators and torchelastic come from errors provoked with torch 2.13 on a CPU;
those of NCCL from its `ncclGetErrorString` and torch's `NCCLUtils.cpp` and `ProcessGroupNCCL.cpp`.
"""

import re
from collections.abc import Collection, Iterator
from typing import Literal

from thriftune.errors import chain_of
from thriftune.training.guards.stall import STALLED

Kind = Literal["user", "transient", "memory", "ours"]

# By name, not by class: a worker's error comes as text, and this module must not import torch. A test compares the
# first two sets with our own classes.
USER_NAMES = frozenset({
    "UserError", "ConfigError", "DataError", "ModelSourceError", "AdapterError", "PublishError", "DivergedError",
    "PreflightError", "NotWritableError", "ResultError", "PodError", "NoProgressError", "LeaseError", "BudgetError",
    "GateError", "ExportError", "ParityError", "ResultParityError", "StoppedEarlyError",
})  # fmt: skip
TRANSIENT_NAMES = frozenset({
    "TransientError", "PreemptedError", "EndedAtOnceError", "StartAgainError", "DiskFullError", "IncompleteError",
    "ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError",
    "TimeoutError",
    "DistNetworkError", "DistStoreError", "DistBackendError",
    "RendezvousTimeoutError", "RendezvousConnectionError", "RendezvousClosedError",
    "SignalException",  # torchelastic was told to stop: the node is going away
})  # fmt: skip
MEMORY_NAMES = frozenset({"MemoryError", "OutOfMemoryError", "_ArrayMemoryError"})

# In lower case.
_USER_TEXTS = (
    "current loss scale already at minimum",  # DeepSpeed's message when fp16 diverged
)
_MEMORY_TEXTS = (
    "out of memory",  # CUDA out of memory; CUDA error: out of memory; NCCL's Cuda failure 2 'out of memory'
    "can't allocate memory",  # DefaultCPUAllocator
    "cannot allocate memory",  # ENOMEM
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_OURS_TEXTS = (
    # A DistBackendError for calling NCCL in a wrong way (two ranks on one GPU) would occur in every attempt.
    "invalid usage",
    "invalid argument",
    "collective mismatch",  # gloo: ranks that call different collectives
)
_TRANSIENT_TEXTS = (
    # gloo; the second ends all its messages about a socket: read error, read timeout, socket closed
    "connection closed by peer",
    "check the logs of the remote worker",
    "pair is not connected",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "application timeout caused pair closure",
    # NCCL
    "unhandled system error",
    "remote process exited",
    "connection closed by remote peer",
    "nccl timeout",
    "nccl communicator was aborted",
    "collective operation timeout",
)
# Exit statuses of a worker without a traceback. -6: NCCL's watchdog aborts a process whose collective timed out. -9:
# the kernel, short of host memory, or an eviction. -15: the node is going away.
_TRANSIENT_STATUSES = frozenset({STALLED, -6, -9, -15})

_ROOT_CAUSE = "Root Cause (first observed failure):"
_STATUS = re.compile(r"exit ?code\s*:?\s*(-?\d+)")
# The line of a traceback that names the exception; torch puts the rank before it, torchelastic and Flyte indent it.
_RAISED = re.compile(r"^(?:\[rank\d+\]:)?\s*(?:traceback : )?(?:[A-Za-z_]\w*\.)*(_?[A-Z]\w*)(?::\s+(.*)|:?\s*)$")
_TRACE_STARTS = ("Traceback (most recent call last)", "The above exception was", "During handling of the above")
_EXCEPTION_ENDS = ("Error", "Exception")


def kind_of(error: BaseException) -> Kind:
    """Whose fault an error is.

    Args:
        error: The error; if it says nothing itself, its causes count, since libraries wrap what they catch.

    Returns:
        user (change the input), transient (try again), memory (try with fewer rows at a time), or ours.
    """
    for link in chain_of(error):
        names, text = {cls.__name__ for cls in type(link).__mro__}, str(link)
        if _ROOT_CAUSE in text or _TRACE_STARTS[0] in text:  # it carries the error of another process
            kind = _judged(names, "") or _judged_text(text)
        else:
            kind = _judged(names, text)
        if kind is not None:
            return kind
    return "ours"


def kind_of_text(message: str) -> Kind:
    """Whose fault an error is, from its text.

    Args:
        message: A traceback, its last line, or what torchelastic reports of its workers.

    Returns:
        As for `kind_of`. If several workers failed, the first one counts: the others were stopped because of it.
    """
    return _judged_text(message) or "ours"


def _judged(names: Collection[str], message: str) -> Kind | None:
    """The kind of one error, without its causes; None if it cannot be told."""
    text = message.lower()

    def says(names_of_kind: frozenset[str], texts: tuple[str, ...]) -> bool:
        return not names_of_kind.isdisjoint(names) or any(part in text for part in texts)

    if says(USER_NAMES, _USER_TEXTS):
        return "user"
    if says(MEMORY_NAMES, _MEMORY_TEXTS):
        return "memory"
    if any(part in text for part in _OURS_TEXTS):
        return "ours"
    return "transient" if says(TRANSIENT_NAMES, _TRANSIENT_TEXTS) else None


def _judged_text(message: str) -> Kind | None:
    text = message.rpartition(_ROOT_CAUSE)[2]
    raised = list(_raised(text))
    for name, said in reversed(raised):
        if (kind := _judged({name}, said)) is not None:
            return kind
    status = _STATUS.search(text)
    if status and int(status[1]) in _TRANSIENT_STATUSES:
        return "transient"
    return None if raised else _judged(set(), text)


def _raised(text: str) -> Iterator[tuple[str, str]]:
    """Name and message of every exception in a traceback, in the order of the text."""
    name = ""
    said: list[str] = []
    for line in text.splitlines():
        match = _RAISED.match(line)
        if match and (match[1].endswith(_EXCEPTION_ENDS) or match[1] in TRANSIENT_NAMES):
            if name:
                yield name, "\n".join(said)
            name, said = match[1], [match[2] or ""]
        elif any(start in line for start in _TRACE_STARTS):
            if name:
                yield name, "\n".join(said)
            name = ""
        else:
            said.append(line)
    if name:
        yield name, "\n".join(said)

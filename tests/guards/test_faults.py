"""Whose fault an error is. What can be provoked on a CPU is provoked; the rest is what others reported."""

import ast
import subprocess
import sys
import textwrap
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

import thriftune
from thriftune.errors import ConfigError, TransientError
from thriftune.training.guards import faults
from thriftune.training.guards.faults import kind_of, kind_of_text

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


def raised(action):
    try:
        action()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def as_text(error):
    return "".join(traceback.format_exception(error))


def subclasses(base):
    """Names of all classes in the package that derive from one, found without importing them."""
    trees = [ast.parse(file.read_text()) for file in Path(thriftune.__file__).parent.rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {base}
    while more := {c.name for c in classes if found & {ast.unparse(b).split(".")[-1] for b in c.bases}} - found:
        found |= more
    return found


@pytest.mark.parametrize(
    ("base", "names"), [("UserError", faults.USER_NAMES), ("TransientError", faults.TRANSIENT_NAMES)]
)
def test_every_error_of_ours_is_known_by_name(base, names):
    found = subclasses(base)
    assert len(found) > 2
    assert found <= names


def test_a_store_that_does_not_answer_is_transient():
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=0.1))
    waiting = raised(lambda: store.wait(["missing"], timedelta(seconds=0.1)))
    assert isinstance(waiting, dist.DistStoreError)
    assert (kind_of(waiting), kind_of_text(as_text(waiting))) == ("transient", "transient")


def test_memory_that_cannot_be_had_is_memory():
    import numpy as np
    import torch

    for action in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 62)):
        error = raised(action)
        assert (kind_of(error), kind_of_text(as_text(error))) == ("memory", "memory")
    assert kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")) == "memory"


GLOO = """
    import sys, time
    from datetime import timedelta
    import torch, torch.distributed as dist
    rank, path, end = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    store = dist.FileStore(path, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=1))
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        time.sleep(0 if end == "killed" else 1.5)
        sys.exit(0) if end != "killed" else __import__("os").kill(__import__("os").getpid(), 9)
    dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("killed", "Check the logs of the remote worker"),
        pytest.param("silent", "Timed out waiting", marks=pytest.mark.slow),
    ],
)
def test_a_gloo_peer_that_is_gone_is_transient(end, expected, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(GLOO))
    commands = [[sys.executable, str(script), str(rank), str(tmp_path / "store"), end] for rank in (0, 1)]
    waiting, leaving = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    message = waiting.communicate(timeout=60)[1]
    leaving.communicate(timeout=60)
    assert expected in message
    assert kind_of_text(message) == "transient"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (NCCL + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.1", "transient"),
        (NCCL + "remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call "
         "failed possibly due to a network error or a remote process exiting prematurely.\nLast error:\n"
         "socketProgressOpt: Call to recv from 172.16.0.1<33759> failed : Connection reset by peer", "transient"),
        (NCCL + "internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\nLast error:\n"
         "Net : Connection closed by remote peer user<50260>", "transient"),
        (NCCL + "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.21.5\nncclInvalidUsage: This "
         "usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 "
         "both on CUDA device 4000", "ours"),
        (NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
         "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
         "Cuda failure 2 'out of memory'", "memory"),
    ],
)  # fmt: skip
def test_what_nccl_says(text, kind):
    import torch.distributed as dist

    assert kind_of(dist.DistBackendError(text)) == kind
    trace = (
        '[rank0]: Traceback (most recent call last):\n[rank0]:   File "x.py", line 1, in main\n[rank0]:     main()\n'
    )
    prefixed = "\n".join(f"[rank0]: {line}" for line in f"torch.distributed.DistBackendError: {text}".splitlines())
    assert kind_of_text(trace + prefixed) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory"),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "memory"),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST)", "transient"),
        ("Application timeout caused pair closure", "transient"),
        (
            "[/x/gloo/tcp/pair.cc:541] Read error [127.0.0.1]:6560: Connection reset by peer. This is typically "
            "caused by a remote worker hanging. Check the logs of the remote worker before reporting an error.",
            "transient",
        ),
        (
            "[enforce fail at pair.cc:461] op.preamble.length <= op.nbytes. Received data size doesn't match expected "
            "size. Is there a distributed collective mismatch in your code?",
            "ours",
        ),
        ("CUDA error: an illegal memory access was encountered", "ours"),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", "ours"),
        ("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.", "user"),
    ],
)
def test_errors_that_only_their_text_tells_apart(text, kind):
    assert kind_of(RuntimeError(text)) == kind
    assert kind_of_text(f"RuntimeError: {text}") == kind
    assert kind_of_text(text) == kind


def reraised(inner, outer, *, cause=True):
    def action():
        try:
            raise inner
        except BaseException as error:  # noqa: BLE001
            raise outer from (error if cause else None)

    return raised(action)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (reraised(ConnectionResetError("reset"), ValueError("could not load")), "transient"),
        (reraised(ConnectionResetError("reset"), ConfigError.single("a", 1, "b.", "c.")), "user"),
        (reraised(MemoryError(), TransientError("x")), "transient"),
        (reraised(ConnectionResetError("reset"), KeyError("weight"), cause=False), "ours"),
        (KeyError("weight"), "ours"),
        (KeyboardInterrupt(), "ours"),
    ],
)
def test_what_an_error_says_itself_counts_before_its_cause(error, kind):
    assert kind_of(error) == kind
    assert kind_of_text(as_text(error)) == kind


def test_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) == "ours"


@pytest.mark.parametrize("hint", ["TimeoutError: not an exception line", "out of memory"])
def test_words_in_a_users_error_do_not_make_it_another(hint):
    error = ConfigError.single("training.micro_batch", hint, "no.", "Do.")
    assert (kind_of(error), kind_of_text(as_text(error)), kind_of_text(f"ConfigError: {error}")) == ("user",) * 3


def failed_workers(status, message, error_file="<N/A>"):
    """What torchelastic raises when rank 0 fails and it stops rank 1 for that."""
    from torch.distributed.elastic.multiprocessing.api import ProcessFailure
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    failures = {0: ProcessFailure(0, 100, status, error_file), 1: ProcessFailure(1, 101, -15, "<N/A>")}
    failures[0].timestamp, failures[1].timestamp = 1, 2
    if message:
        failures[0].message = {"message": message.splitlines()[-1], "extraInfo": {"py_callstack": message}}
    return ChildFailedError("worker.py", failures)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (75, None, "transient"),
        (-9, None, "transient"),
        (-6, None, "transient"),
        (1, None, "ours"),
        (-11, None, "ours"),
        (1, ConfigError.single("training.x", 3, "no.", "Do."), "user"),
        (1, RuntimeError("[/x/pair.cc:553] Connection closed by peer [127.0.0.1]:47232."), "transient"),
        (1, RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."), "memory"),
        (1, KeyError("weight"), "ours"),
    ],
)
def test_of_failed_workers_the_first_one_counts(status, error, kind):
    failed = failed_workers(status, as_text(error) if error else "")
    assert kind_of_text(str(failed)) == kind
    assert kind_of(failed) == kind
    assert kind_of(RuntimeError(failed.format_msg())) == kind

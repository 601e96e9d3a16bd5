"""Processes that are killed while they save: what looks whole afterwards is."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from checkpointing import content_of, lone_saver, restore, until, whole_steps, write_checkpoint

from thriftune.checkpoints import layout
from thriftune.checkpoints.restoring import complete
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)

ENDLESS = """
    import sys, time
    from pathlib import Path
    from checkpointing import write_checkpoint
    from thriftune.checkpoints.saving import BackgroundSaver
    from thriftune.stores.store import Store

    class Slow(Store):
        def upload(self, file, name, sha256=""):
            super().upload(file, name, sha256)
            time.sleep(0.004)

    prefix, scratch, node, nodes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    saver = BackgroundSaver(Slow(prefix), node=node, nodes=nodes, world_size=4 * nodes, keep=2, poll_s=0.01)
    print("ready", flush=True)
    sys.stdin.readline()  # as training does: nobody saves before all are there
    for step in range(1, 100_000):
        ranks = range(4 * node, 4 * node + 4)
        saver.save(write_checkpoint(scratch / f"{node}-{step}", step, ranks, size=300_000), step, {})
        saver.wait(1)
"""


def start(prefix: str, scratch: Path, nodes: int) -> list["subprocess.Popen[str]"]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    processes = []
    for node in range(nodes):
        command = [sys.executable, "-c", textwrap.dedent(ENDLESS), prefix, str(scratch), str(node), str(nodes)]
        environment = {**os.environ, "PYTHONPATH": paths}
        processes.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def kill(processes: list["subprocess.Popen[str]"]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_node_leaves_only_whole_checkpoints_that_look_whole(local, tmp_path, seed):
    for number in range(2):
        store = Store(f"{local.prefix}-{number}")
        processes = start(store.prefix, tmp_path / f"scratch{number}", 1)
        try:
            until(lambda at=store: complete([at]))
            time.sleep(random.Random(2 * seed + number).uniform(0, 0.25))
        finally:
            kill(processes)
        steps = whole_steps(store, tmp_path)
        assert 1 <= len(steps) <= 3, "two, or a third that was being removed"


def test_two_killed_nodes_of_an_s3_store_too_and_the_next_attempt_goes_on(s3, tmp_path):
    processes = start(s3.prefix, tmp_path / "scratch", 2)
    try:
        until(lambda: complete([s3]), 40)
        time.sleep(0.3)
        processes[1].send_signal(signal.SIGKILL)  # one node goes; the other notices by what does not come
        time.sleep(0.2)
    finally:
        kill(processes)
    assert whole_steps(s3, tmp_path)
    newest = restore([s3], tmp_path / "new")
    assert newest is not None
    assert {entry.node for entry in newest.manifest.files} == {0, 1}
    saver = lone_saver(s3, keep=1)
    directory = write_checkpoint(tmp_path / "next", 0)
    expected = content_of(directory)
    saver.save(directory, newest.step + 1, {})
    saver.close()
    restored = restore([s3], tmp_path / "new")
    assert restored is not None
    assert (restored.step, content_of(restored.directory)) == (newest.step + 1, expected)
    left = {step for name in s3.names() if (step := layout.step_of(name)) is not None}
    assert min(left) == restored.step, "what was begun of later steps may stay"

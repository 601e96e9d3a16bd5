"""A process that stands still ends itself, wherever it stands, and says where."""

import subprocess
import sys
import textwrap
import time

import pytest

from thriftune.training.guards.stall import STALLED, StallWatch

GLOO = """
    from datetime import timedelta
    import torch, torch.distributed as dist
    rank = int(sys.argv[1])
    store = dist.FileStore(sys.argv[2], 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(hours=1))
    if rank == 1:
        sys.stdin.read()  # joined, and never comes to the collective
        os._exit(0)
    with StallWatch(1.0):
        dist.all_reduce(torch.ones(1))
"""


def script(tmp_path, body):
    file = tmp_path / "stalling.py"
    file.write_text(
        "import os, sys, time\nfrom thriftune.training.guards.stall import StallWatch\n" + textwrap.dedent(body)
    )
    return [sys.executable, str(file)]


def run(tmp_path, body, *arguments):
    return subprocess.run([*script(tmp_path, body), *arguments], capture_output=True, text=True, timeout=60)


def test_sleep_ends_with_the_status_the_log_and_the_stack(tmp_path):
    body = """
        def slow_step():
            time.sleep(60)
        def note(seconds):
            print("note", seconds > 0.5, flush=True)
        with StallWatch(0.5, note) as watch:
            watch.beat()
            slow_step()
    """
    result = run(tmp_path, body)
    assert result.returncode == STALLED == 75
    assert "No step for" in result.stderr
    assert "in slow_step" in result.stderr
    assert result.stdout == "note True\n"


def test_a_collective_whose_peer_never_comes(tmp_path):
    command = [*script(tmp_path, GLOO)]
    store = str(tmp_path / "store")
    absent = subprocess.Popen([*command, "1", store], stdin=subprocess.PIPE)
    try:
        result = subprocess.run([*command, "0", store], capture_output=True, text=True, timeout=60)
    finally:
        absent.communicate(timeout=60)
    assert result.returncode == STALLED
    assert "in all_reduce" in result.stderr


def test_code_that_hangs_with_the_interpreter_lock_ends_too(tmp_path):
    result = run(tmp_path, "import ctypes\nwith StallWatch(0.4):\n    ctypes.PyDLL(None).sleep(60)\n")
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    assert "stalling.py" in result.stderr


@pytest.mark.parametrize("on_stall", ["lambda seconds: 1 / 0", "lambda seconds: time.sleep(60)"])
def test_a_callback_that_fails_or_hangs_does_not_keep_the_process(on_stall, tmp_path):
    body = f"""
        import thriftune.training.guards.stall as stall
        stall._LAST_WORDS_SECONDS = 0.3
        with StallWatch(0.2, {on_stall}):
            time.sleep(60)
    """
    assert run(tmp_path, body).returncode == STALLED


def test_steps_and_pauses_keep_it_alive(tmp_path):
    body = """
        with StallWatch(0.5) as watch:
            for _ in range(5):
                time.sleep(0.1)
                watch.beat()
            with watch.paused():
                with watch.paused():
                    time.sleep(0.55)
                time.sleep(0.55)
            time.sleep(0.2)
        time.sleep(1)
        print("done")
    """
    result = run(tmp_path, body)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_leaving_the_block_takes_no_time():
    started = time.monotonic()
    with StallWatch(3600) as watch:
        watch.beat()
    assert time.monotonic() - started < 1
    assert not watch._thread.is_alive()

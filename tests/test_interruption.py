"""Ctrl-C and SIGTERM end a local run soon, leave nothing behind, and say how to go on."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_workflows import FULL, PYFLYTE, QLORA, ROOT, pyflyte_run, write_config

from tasks import elastic, settings
from thriftune.errors import PreemptedError

_SOON_S = 10.0
_BEGINNING_S = 240.0
# A run that stands still in the middle of something, `{doing}`, with a process of its own.
_RUN = """
import subprocess, sys, time
sys.argv = ["pyflyte", "run", "workflow"]
from tasks import interruption, local_run
local_run.begin()
interruption._listen()
if __name__ == "__main__":
    child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    print(child.pid, child.stdout.readline(), sep="\\n", flush=True)
    {doing}
"""


def interrupt(tmp_path: Path, doing: str, *, is_read: bool = True) -> tuple[int, str]:
    """Interrupt such a run, and see that no process and no file is left; its exit status and its last line."""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(tmp_path / "outputs"), "TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-c", _RUN.format(doing=doing)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as run:
        children = [psutil.Process(int(run.stdout.readline())), psutil.Process(int(run.stdout.readline()))]
        time.sleep(0.2)  # until it does what it does
        if not is_read:
            run.stderr.close()
        run.send_signal(signal.SIGINT)
        run.wait(2 * _SOON_S)
        said = run.stderr.read().splitlines() if is_read else [""]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert list((tmp_path / "temporary").iterdir()) == []
    return run.returncode, said[-1]


@pytest.fixture
def interrupted(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command until its log says something, send a signal, and look at what is left."""

    def run(*command: str, at: str, number: int, to_all: bool = False) -> subprocess.CompletedProcess[str]:
        temporary, log = tmp_path / "temporary", tmp_path / "log"
        temporary.mkdir()
        environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(tmp_path / "outputs"), "TMPDIR": str(temporary)}
        with log.open("w") as stderr, subprocess.Popen(
            [str(PYFLYTE), "run", *command], cwd=ROOT, env=environment, stderr=stderr, stdout=stderr,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                until = time.monotonic() + _BEGINNING_S
                while at not in log.read_text() and process.poll() is None and time.monotonic() < until:
                    time.sleep(0.05)
                assert at in log.read_text(), log.read_text()[-3000:]
                others = psutil.Process(process.pid).children(recursive=True)
                sent = time.monotonic()
                (os.killpg if to_all else os.kill)(process.pid, number)  # a terminal tells all of them
                process.wait(6 * _SOON_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        assert time.monotonic() - sent < _SOON_S
        assert not [other for other in others if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
        assert list(temporary.iterdir()) == []
        assert list((tmp_path / "outputs").rglob("*.partial")) == []
        return subprocess.CompletedProcess(command, process.returncode, stderr=log.read_text())

    return run


def test_a_run_that_is_planned_ends_with_its_own_command(interrupted, tmp_path, tiny_model_dir, chat_rows_file):
    config = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file)
    done = interrupted(*FULL, "--config", str(config), at="INFO", number=signal.SIGINT, to_all=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines()[-1] == f"To start again: pyflyte run {' '.join(FULL)} --config {config}"


def test_a_training_in_workers_is_saved_and_named(interrupted, tmp_path, tiny_model_dir, chat_rows_file):
    """Ctrl-C took up to 80 s and ended in `IgnoreOutputs`, with nothing after the colon."""
    training = {"max_steps": 2000, "log_every": 1}
    config = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file, training=training)
    done = interrupted(*FULL, "--config", str(config), at="step 3/", number=signal.SIGINT, to_all=True)
    assert done.returncode == 128 + signal.SIGINT
    assert "Checkpoints go to" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("To resume from step ")
    assert "IgnoreOutputs" not in done.stderr


def test_a_training_goes_on_by_the_line_that_it_ended_with(interrupted, tmp_path, tiny_model_dir, chat_rows_file):
    training = {"max_steps": 60, "log_every": 1}
    config = write_config(tmp_path, "qlora", tiny_model_dir, chat_rows_file, training=training)
    done = interrupted(*QLORA, "--config", str(config), at="step 3/", number=signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM
    last = done.stderr.splitlines()[-1]
    step, _, command = last.removeprefix("To resume from step ").partition(": ")
    command, _, place = command.partition("   (checkpoints.resume_from: ")
    assert int(step) >= 3
    assert Path(place.rstrip(")")).is_dir()
    program, run, *arguments = shlex.split(command)
    assert (program, run) == ("pyflyte", "run")
    finished = pyflyte_run(tmp_path, *arguments)
    assert f"Resuming from step {step} " in finished.stderr


def test_an_error_that_comes_of_the_end_is_not_the_end(tmp_path):
    """The main thread found its processes killed, and ended with status 1 before the line that says how to go on."""
    assert interrupt(tmp_path, "child.wait(); sys.exit(1)") == (130, "To start again: pyflyte run workflow")


def test_nobody_need_read_what_is_said(tmp_path):
    """`pyflyte run ... | tee log`: tee ends first, and the run ended with neither a checkpoint nor a look behind it."""
    assert interrupt(tmp_path, "time.sleep(600)", is_read=False)[0] == 130


def test_the_processes_of_a_worker_that_ends_first_end_too(tmp_path):
    """A compiler that a worker had started went on without it."""
    config = "from thriftune.config import RunConfig; config = RunConfig.model_construct(name='run')"
    training = "with interruption.training(config, in_workers=True): time.sleep(600)"
    said = interrupt(tmp_path, f"{config}; interruption._way_on = lambda: 'on'\n    {training}")
    assert said == (130, "on")


def test_a_store_that_does_not_answer_keeps_nobody(tmp_path):
    slow = "interruption._LIMIT_S = 3.0; interruption._way_on = lambda: time.sleep(600); time.sleep(600)"
    assert interrupt(tmp_path, slow) == (130, "To start again: pyflyte run workflow")


def test_a_worker_does_not_wait_for_a_signal_that_it_has_had(tmp_path, monkeypatch):
    """Of two workers that were given notice the second waited, for 30 s of the grace period, to be ended."""
    monkeypatch.setenv(settings._WORDS, str(tmp_path))
    (tmp_path / elastic._SAID).write_text("the first one's")
    before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    try:
        elastic._tell_agent(PreemptedError("the node goes away"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < _SOON_S
    assert (tmp_path / elastic._SAID).read_text() == "the first one's"

"""Ctrl-C and SIGTERM end a local run soon, leave nothing behind, and say how to go on."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_workflows import FULL, PYFLYTE, QLORA, ROOT, pyflyte_run, write_config

_SOON_S = 10.0
_BEGINNING_S = 240.0


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
    assert done.stderr.splitlines()[-1] == f"To begin again: pyflyte run {' '.join(FULL)} --config {config}"


def test_a_training_in_workers_is_saved_and_named(interrupted, tmp_path, tiny_model_dir, chat_rows_file):
    """Ctrl-C took up to 80 s and ended in `IgnoreOutputs`, with nothing after the colon."""
    training = {"max_steps": 2000, "log_every": 1}
    config = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file, training=training)
    done = interrupted(*FULL, "--config", str(config), at="step 3/", number=signal.SIGINT, to_all=True)
    assert done.returncode == 128 + signal.SIGINT
    assert "Checkpoints go to" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("To go on from step ")
    assert "IgnoreOutputs" not in done.stderr


def test_a_training_goes_on_by_the_line_that_it_ended_with(interrupted, tmp_path, tiny_model_dir, chat_rows_file):
    training = {"max_steps": 60, "log_every": 1}
    config = write_config(tmp_path, "qlora", tiny_model_dir, chat_rows_file, training=training)
    done = interrupted(*QLORA, "--config", str(config), at="step 3/", number=signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM
    last = done.stderr.splitlines()[-1]
    step, _, command = last.removeprefix("To go on from step ").partition(": ")
    command, _, place = command.partition("   (checkpoints.resume_from: ")
    assert int(step) >= 3
    assert Path(place.rstrip(")")).is_dir()
    program, run, *arguments = shlex.split(command)
    assert (program, run) == ("pyflyte", "run")
    finished = pyflyte_run(tmp_path, *arguments)
    assert f"Going on from step {step} " in finished.stderr

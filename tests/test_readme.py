"""The README's commands are run, and its YAML is the YAML that is run; test_docs.py looks at the names in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.image import require_image
from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.config.sweep import SweepRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
PLANS = [c for c in COMMANDS if "workflows/plan.py" in c]
# Run whole by hand, as it takes minutes; tests/test_benchmark_run.py runs the same on a tiny model.
MEASURING = [c for c in COMMANDS if "workflows/benchmark.py" in c]
# The same: tests/test_sweep_workflow.py.
SWEEPS = [c for c in COMMANDS if "workflows/sweep.py" in c]
ELSEWHERE = [*PLANS, *MEASURING, *SWEEPS]
LOCAL = [
    c for c in COMMANDS if c.startswith("pyflyte run workflows") and "configs/demo" not in c and c not in ELSEWHERE
]
SERVING = [c for c in COMMANDS if c.startswith("python -m thriftune.inference.serve ")]
# tests/cluster/test_qlora_runs.py runs these.
REGISTERING = [c for c in COMMANDS if c.startswith(("pyflyte register ", "pyflyte launchplan "))]
SANDBOX = "source configs/sandbox.env && "
BIN = Path(sys.executable).parent


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    environment.pop("THRIFTUNE_RUN_STAMP", None)
    shell = ["bash", "-c", command]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_every_command_is_of_a_kind_that_is_tested_here():
    assert len(COMMANDS) == 17
    assert (len(LOCAL), len(PLANS), len(MEASURING), len(SWEEPS), len(SERVING)) == (3, 1, 1, 1, 1)
    for command in COMMANDS:
        known = command in (*REGISTERING, *SERVING, "flytectl demo start")
        assert command.removeprefix(SANDBOX).startswith(("make ", "pyflyte run ")) or known, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if "pyflyte run" in c and c not in [*LOCAL, *ELSEWHERE]])
def test_commands_of_the_demo_and_the_cluster_name_a_workflow_and_a_file_that_fits(command, tmp_path):
    # The demo's are run whole by `make demo`, the sandbox's by tests/cluster/test_sandbox.py; another cluster is not at
    # hand. What they name is checked by the real CLI.
    config = ROOT / shlex.split(command)[-1]
    assert yaml.safe_load(config.read_text())["method"] in command
    options, _, _ = command.partition(" --config ")
    done = run(f"{options} --help", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--config" in done.stdout


@pytest.mark.parametrize("command", MEASURING)
def test_the_command_that_measures_is_that_of_the_example(command):
    config = ROOT / shlex.split(command)[-1]
    assert f"#   {command}\n" in config.read_text()
    assert BenchmarkRun.model_validate(yaml.safe_load(config.read_text())).name == config.stem


@pytest.mark.parametrize("command", SWEEPS)
def test_the_sweep_is_that_of_the_example(command):
    config = ROOT / shlex.split(command)[-1]
    assert f"{command}\n" in config.read_text()
    assert SweepRun.model_validate(yaml.safe_load(config.read_text())).name == config.stem


@pytest.mark.parametrize("command", SERVING)
def test_the_server_takes_the_words_of_its_command(command, tmp_path):
    """It stops where the README's model is not; tests/serving starts it on one that is there."""
    done = run(command, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --base = my-model"), done.stderr


@pytest.mark.parametrize("command", PLANS)
def test_the_plan_is_printed_as_the_readme_shows_it_without_a_network(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path))
    done = run(command, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = re.search(rf"{re.escape(command)}\n```\n\n```text\n(.*?)```", README, re.S)
    assert shown
    printed = {line.rstrip() for line in done.stderr.splitlines()}
    assert [line for line in shown.group(1).splitlines() if line.rstrip() not in printed] == []
    assert list(tmp_path.glob("*/*/plan/plan.html"))


@pytest.mark.slow
def test_own_model_and_data_as_the_readme_says(tmp_path, tiny_model_dir, chat_rows_file):
    for name in ("workflows", "tasks", "thriftune", "pod_templates", "deepspeed_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    block = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert block
    (tmp_path / "my-run.yaml").write_text(block.group(1))
    shutil.copytree(tiny_model_dir, tmp_path / "my-model")
    shutil.copy(chat_rows_file, tmp_path / "my-data.jsonl")
    for command in LOCAL:
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (model,) = tmp_path.glob("outputs/my-run/*/model")
    assert (model / "manifest.json").is_file()
    assert (model.parent / "metrics.json").is_file()
    assert list(tmp_path.glob("outputs/generate/*/answers.jsonl"))
    assert list(tmp_path.glob("outputs/**/*.gguf"))


def test_images_are_of_this_release():
    images = re.findall(r"--image (\S+)", README)
    assert len(images) == 2
    assert [require_image(image) for image in images] == images


def test_no_placeholder_is_left():
    assert not re.findall(r"^[A-Z_]{6,}$", README, re.M)

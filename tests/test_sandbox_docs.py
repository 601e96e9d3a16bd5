"""docs/sandbox.md and configs/sandbox.env: settings that exist, sizes that are asked for, commands of what there is.

Its commands of pyflyte are run by cluster/test_sandbox.py; flytectl and Docker are not at hand.
"""

import re
from pathlib import Path

import yaml

from tasks import platform
from tasks.image import require_image
from thriftune.config import RunConfig
from thriftune.models import architecture
from thriftune.planning import catalogue, planner, pod_requests

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.strip().splitlines()]
SETTINGS = dict(re.findall(r"^export (\w+)=(.+)$", (ROOT / "configs" / "sandbox.env").read_text(), re.M))


def test_the_settings_are_settings_and_the_image_is_of_this_release():
    read = platform.read(
        {name: value for name, value in SETTINGS.items() if name.startswith(("THRIFTUNE_", "FLYTE_I"))}
    )
    assert require_image(read.image) == read.image
    usual = platform.Platform()
    for name in ("cpu", "disk_gib", "prepare_cpu", "prepare_disk_gib", "generate_gpus", "generate_cpu"):
        assert getattr(read, name) < getattr(usual, name), name
    assert {name for name in SETTINGS if not name.startswith("THRIFTUNE_")} == {
        "FLYTECTL_CONFIG", "FLYTE_IMAGE", "FLYTE_AWS_ENDPOINT", "FLYTE_AWS_ACCESS_KEY_ID", "FLYTE_AWS_SECRET_ACCESS_KEY"
    }  # fmt: skip


def test_the_table_says_what_each_pod_asks_for():
    config = RunConfig.model_validate(yaml.safe_load((ROOT / "configs" / "sandbox-qlora.yaml").read_text()))
    plan = planner.plan(config, catalogue.load(), architecture=architecture.of(config.model))
    assert plan.instance == "k3s"
    asked = {
        "fetch_model": f"{pod_requests.fetching(config, plan).memory_gib}Gi",
        "prepare_dataset": SETTINGS["THRIFTUNE_PREPARE_MEMORY"],
        "train_in_one_process": f"{plan.request.memory_gib}Gi",
        "merge_adapter": f"{pod_requests.merging(config, plan).memory_gib}Gi",
    }
    table = re.findall(r"^\| `(\w+)` \| \d+ \| ([\d.]+) GiB \| (\d+)Gi \|$", PAGE, re.M)
    assert len(table) == 9
    assert {task: f"{memory}Gi" for task, _, memory in table} == {
        task: asked.get(task, SETTINGS["THRIFTUNE_MEMORY"]) for task, _, _ in table
    }
    assert all(float(peak) < int(memory) for _, peak, memory in table)


def test_it_begins_as_the_readme_does_and_three_commands_are_three():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin = re.search(r"## In three commands\n\n```console\n(.*?)```", PAGE, re.S)
    assert begin
    assert len(begin[1].splitlines()) == 3
    assert begin[1] in readme


def test_every_command_is_of_a_tool_that_the_page_asks_for():
    tools = {command.removeprefix("source configs/sandbox.env && ").split()[0] for command in COMMANDS}
    assert tools == {"make", "source", "flytectl", "pyflyte", "docker"}
    assert f"docker image rm {SETTINGS['FLYTE_IMAGE']}" in COMMANDS

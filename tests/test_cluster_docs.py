"""docs/cluster.md: what it quotes is said, its snippets parse, and its sizes are the planner's.

What it names is looked at in test_docs.py.
What it says of a real cluster cannot be tested here; the page says so.
"""

import ast
import inspect
import json
import re
import shlex
from pathlib import Path

import flytekit
import pytest
import yaml
from documents import run_files
from flytekit.clis.sdk_in_container.pyflyte import main as pyflyte
from flytekit.configuration import Config
from flytekit.remote import FlyteRemote

from tasks.declaring import CpuPod
from tasks.image import require_image
from tasks.platform import Platform, variable
from tasks.provisioning import node_resources, on_cpu_node
from thriftune.config import RunConfig
from thriftune.models import architecture
from thriftune.planning import catalogue, planner, pod_requests
from workflows import launch_plans

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.S | re.M)
PROSE = re.sub(r"^```.*?^```", "", PAGE, flags=re.S | re.M)
SETTINGS = {variable(name): name for name in Platform.model_fields}
RUNS = {path.stem: RunConfig.model_validate(yaml.safe_load(path.read_text())) for path in run_files()}
GPU_RUNS = {name: run for name, run in RUNS.items() if run.hardware.device != "CPU"}


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def rows(head: str) -> list[list[str]]:
    """The cells of the table whose first column is called `head`."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    assert found, f"no table with the head {head}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.group(1).splitlines()]


def source_of(*folders: Path) -> str:
    """All code below, with strings that go on in the next line joined."""
    text = "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_defaults_it_gives_are_the_defaults():
    given = dict(re.findall(r"`(THRIFTUNE_\w+)` \((\d+)\)", PAGE))
    assert len(given) == 5
    assert {name: str(getattr(Platform(), SETTINGS[name])) for name in given} == given


def test_the_launch_plans_it_names_exist():
    commands = " ".join(blocks("console") + blocks("python"))
    named = set(re.findall(r"(?:--activate |name=\")(\w+)", commands)) | set(re.findall(r"`(\w+ly_\w+)`", PROSE))
    assert named == {"nightly_qlora", "weekly_full"}
    assert {getattr(launch_plans, name).name for name in named} == named


def test_secrets_reach_the_tasks_that_it_says():
    golden = (ROOT / "tests" / "specification" / "golden").glob("*.task.yaml")
    tasks = {file.name.split(".")[-3]: yaml.safe_load(file.read_text()) for file in golden}
    holders = {
        group: {name for name, task in tasks.items() if group in [s["group"] for s in task.get("secrets", [])]}
        for group in ("hub", "wandb")
    }
    said = re.search(r"The hub token goes into (.*?); the Weights", PROSE, re.S)
    assert said
    assert holders["hub"] == set(re.findall(r"`(\w+)`", said[1]))
    trainings = {name for name in tasks if name.startswith("train_")} - {"train_on_plan", "train_round"}
    assert holders["wandb"] == {"preflight", "preflight_alone", "plan_round"} | trainings
    for secret in re.findall(r"THRIFTUNE_(?:HUB|WANDB)_SECRET=(\w+/\w+)", PAGE):
        group, key = secret.split("/")
        assert f"create secret generic {group} --from-literal={key}=" in PAGE


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "is flytekit's own, which has none of the libraries",
        "and the code that is registered is",
        "the hub refused the token (HTTP 401)",
        "Nothing but publishing failed",
        "deepspeed_configs/ has no",
        "This pod is not what was planned",
        "this pod is in no PyTorchJob",
    ],
)
def test_messages_of_this_package_are_in_its_code(message):
    assert f"`{message}`" in PROSE
    own = source_of(*(ROOT / name for name in ("thriftune", "tasks", "workflows", "deepspeed_configs")))
    assert message.replace("401", "{status}") in own


def test_a_message_of_flytekit_is_in_its_code():
    assert "already exists" in PROSE
    assert "already exists" in source_of(Path(flytekit.__file__).parent / "remote")


# ---- snippets --------------------------------------------------------------------------------------------------------


def test_its_yaml_and_json_parse():
    parsed = [document for text in blocks("yaml") for document in yaml.safe_load_all(text)]
    assert [next(iter(document)) for document in parsed] == ["configuration", "apiVersion", "apiVersion"]
    (policy,) = map(json.loads, blocks("json"))
    assert [statement["Effect"] for statement in policy["Statement"]] == ["Allow", "Allow"]


def test_its_python_calls_what_flytekit_has():
    (text,) = blocks("python")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    known = {"FlyteRemote": FlyteRemote, "auto": Config.auto, "open": open, "safe_load": yaml.safe_load}
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
        called = known.get(name) or getattr(FlyteRemote, name)
        assert {word.arg for word in call.keywords} <= set(inspect.signature(called).parameters), name
    assert len(calls) == 6


def test_its_pyflyte_commands_have_these_options():
    text, by_hand = [block for block in blocks("console") if "pyflyte" in block]
    assert {shlex.split(line)[1] for line in by_hand.splitlines()} == {
        "run"
    }  # tests/cluster/test_qlora_runs.py runs it
    arguments = re.search(r'^TO="(.*)"$', text, re.M)
    assert arguments
    commands = [shlex.split(line.replace("$TO", arguments[1])) for line in text.splitlines() if line[:7] == "pyflyte"]
    assert [command[1] for command in commands] == ["run", "run", "register", "launchplan"]
    for _, name, *words in commands:
        options = {option for parameter in pyflyte.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} - {"--config"} <= options, name
    images = re.findall(r"--image (\S+)", arguments[1])
    assert [require_image(image) for image in images] == images != []


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans():
    nodes = catalogue.load()
    return {name: planner.plan(run, nodes, architecture=architecture.of(run.model)) for name, run in GPU_RUNS.items()}


class Node:
    """Stands in for a node of a workflow."""

    def with_overrides(self, requests, **_):
        return requests


def asked(request: pod_requests.PodRequest, plan):
    return on_cpu_node(Node(), plan, request)


def test_the_table_of_sizes_is_the_planners(plans):
    said = {row[0].strip("`"): row[1:] for row in rows("Run file")}
    assert set(said) == set(plans)
    for name, plan in plans.items():
        training = node_resources(plan)
        expected = [f"{plan.nodes} x {plan.instance}", training.cpu, training.mem, training.gpu]
        expected.append(training.ephemeral_storage)
        run = GPU_RUNS[name]
        if run.merges:
            merging = asked(pod_requests.merging(run, plan), plan)
            expected += [merging.mem, merging.ephemeral_storage]
        else:
            expected += ["-", "-"]
        assert said[name] == [str(value) for value in expected], name


def test_the_sentences_after_the_table_are_true(plans):
    platform = Platform()
    prepare = CpuPod(platform.prepare_memory, platform.prepare_cpu, platform.prepare_disk_gib).options()["requests"]
    assert f"{prepare.cpu} CPUs, {prepare.mem} and {prepare.ephemeral_storage} of disk" in PROSE
    assert f"other CPU tasks {platform.cpu} CPUs and {platform.memory}" in re.sub(r"\s+", " ", PROSE)
    for name, plan in plans.items():
        for request in (pod_requests.fetching(GPU_RUNS[name], plan), pod_requests.publishing(GPU_RUNS[name], plan)):
            pod = asked(request, plan)
            assert pod.mem == "4Gi"
            assert int(pod.ephemeral_storage[:-2]) <= int(node_resources(plan).ephemeral_storage[:-2])
    largest = pod_requests.merging(GPU_RUNS["llama2-70b-qlora"], plans["llama2-70b-qlora"])
    assert f"takes {largest.memory_gib}Gi" in PROSE


def test_its_limits_hold_every_pod_of_the_table():
    limits = yaml.safe_load(blocks("yaml")[0])["configuration"]["inline"]["task_resources"]["limits"]
    for _, _, cpus, memory, gpus, _, merging, _ in rows("Run file"):
        assert int(cpus) <= int(limits["cpu"])
        assert int(gpus) <= int(limits["gpu"])
        for size in (memory, merging.replace("-", "0Gi")):
            assert int(size[:-2]) <= int(limits["memory"][:-2])

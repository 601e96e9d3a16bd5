"""docs/sandbox.md on a control plane like the sandbox: its node, plugins, variables and limits, and a model of our own.

Its pods get FLYTE_AWS_* and nothing of AWS's, its one node is a laptop's, and no job of several nodes can run there.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.conftest import ROOT, Pyflyte, done
from cluster.control_plane import ControlPlane
from cluster.description import SANDBOX
from cluster.looking import attempts_of, loss, on_the_plan_s_nodes, output
from cluster.records import Run

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.strip().splitlines()]
SOURCED = "source configs/sandbox.env && "
FILE = "configs/sandbox-qlora.yaml"
SHARDS = 15
WAITING = ("--wait", "--poll-interval", "1")
CONNECTION = ("FLYTECTL_CONFIG", "FLYTE_AWS_ENDPOINT", "FLYTE_AWS_ACCESS_KEY_ID", "FLYTE_AWS_SECRET_ACCESS_KEY")


def command(beginning: str) -> list[str]:
    """The arguments of a command of pyflyte that the page has once."""
    (found,) = {line.removeprefix(SOURCED) for line in COMMANDS if line.removeprefix(SOURCED).startswith(beginning)}
    return shlex.split(found)[1:]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that is like the sandbox."""
    with ControlPlane(tmp_path_factory.mktemp("sandbox"), SANDBOX) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """What `source configs/sandbox.env` sets, without what says where the sandbox is; and the shipped catalogue."""
    shell = ["bash", "-c", "source configs/sandbox.env && env"]
    lines = subprocess.run(shell, cwd=ROOT, env={"HOME": "/"}, capture_output=True, text=True, check=True).stdout
    sourced = dict(line.split("=", 1) for line in lines.splitlines())
    ours = {name: value for name, value in sourced.items() if name.startswith(("THRIFTUNE_", "FLYTE"))}
    assert set(CONNECTION) < set(ours)
    return {"THRIFTUNE_CATALOGUE": "", **{name: value for name, value in ours.items() if name not in CONNECTION}}


@pytest.fixture(scope="module")
def twin(cluster: ControlPlane, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sandbox's run file, with a tiny model and rows like those of its data set in the bucket."""
    colours = ("gold", "blue", "grey", "red")
    rows = [
        {
            "instruction": f"What colour is the sky on day {day}?",
            "context": f"The sky of day {day} was seen by {day + 2} people." if day % 3 else "",
            "response": f"On day {day}, the sky is {colours[day % 4]}.",
            "category": "closed_qa",
        }
        for day in range(320)
    ]
    content: dict[str, Any] = yaml.safe_load((ROOT / FILE).read_text(encoding="utf-8"))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder = tmp_path_factory.mktemp("twin")
    model = in_shards(tiny_model_dir, folder / "model")
    content["model"] = {"source": cluster.store.upload(model, cluster.store.uri("models", "tiny"))}
    data = cluster.store.put(cluster.store.uri("data", "rows.jsonl"), lines.encode())
    content["data"] = {**content["data"], "source": data, "revision": None}
    file = folder / "sandbox-qlora.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def in_shards(model: Path, folder: Path) -> Path:
    """The same model in fifteen files of weights or more, as a large one has them."""
    from transformers import AutoModelForCausalLM

    size = (model / "model.safetensors").stat().st_size
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size=size // 25)
    assert len(list(folder.glob("*.safetensors"))) >= SHARDS
    return folder


@pytest.fixture(scope="module")
def run(cluster: ControlPlane, pyflyte: Pyflyte, settings: dict[str, str], twin: Path) -> Run:
    """The page's own command, on the twin."""
    started = command("pyflyte run --remote --copy all workflows/qlora_finetune.py")
    assert started[-1] == FILE
    pyflyte("run", *WAITING, *started[1:-1], str(twin), settings=settings)
    return done(cluster)


def test_the_run_is_planned_on_the_sandbox_s_node_and_trains_there(run):
    plan = output(run, "plan")
    assert (plan["instance"], plan["nodes"], plan["hardware"]["name"], plan["price_per_hour"]) == ("k3s", 1, "CPU", 0)
    assert on_the_plan_s_nodes(run) == {"train_in_one_process"}
    assert set(attempts_of(run).values()) == {1}
    training = output(run, "metrics")["training"]
    assert training["after"]["loss"] < training["before"]["loss"]


def test_pods_knew_the_store_by_flytekit_s_names_alone(run, cluster):
    assert {name for name in cluster.pods.variables if "AWS" in name} == set(CONNECTION[1:])
    assert run.outputs.literals["model"].scalar.blob.uri.startswith("s3://my-s3-bucket/")


def test_no_pod_held_more_than_it_was_given(run, cluster):
    """Every task that moves the model of many shards; tests/test_task_memory.py has larger ones."""
    used = {name: memory for name, memory in cluster.pods.memory.items() if name.startswith(run.name)}
    assert len(used) >= 8
    assert all(held > 100 * 2**20 for held, _ in used.values()), "they were not looked at"
    assert {name: memory for name, memory in used.items() if memory[0] > memory[1]} == {}


def test_the_model_is_fetched_into_a_folder_with_the_command_of_the_page_and_of_the_deck(
    run, cluster, pyflyte, settings, tmp_path
):
    *fetch, uri, folder = command("pyflyte fetch")
    shown = shlex.split(fetch_command_on_a_deck(run, cluster))[1:]
    assert shown == [*fetch, uri.replace("EXECUTION", run.name), yaml.safe_load((ROOT / FILE).read_text())["name"]]
    pyflyte(*shown[:-1], str(tmp_path / folder), settings=settings)
    (model,) = [file.parent for file in tmp_path.rglob("config.json")]
    assert model.relative_to(tmp_path).as_posix() in PAGE
    assert loss(model) > 0


def fetch_command_on_a_deck(run: Run, cluster: ControlPlane) -> str:
    """The command that one deck of a run shows to fetch the model."""
    execution = run.execution.id
    own = cluster.store.uri("metadata", "propeller", f"{execution.project}-{execution.domain}-{execution.name}")
    decks = [(cluster.store.get(uri) or b"").decode() for uri in cluster.store.list(own) if uri.endswith("/deck.html")]
    assert len(decks) >= 5  # plan, preflight, data, training, result
    (shown,) = [found for deck in decks for found in re.findall(r"<pre>(pyflyte fetch .*)</pre>", deck)]
    return unescape(shown)


def test_a_plan_that_is_asked_for_on_a_cluster_is_for_the_cluster(cluster, pyflyte, settings, twin, tmp_path):
    """It said "this machine" for a run that the workflow then refused."""
    content = yaml.safe_load(twin.read_text())
    del content["hardware"]["instance"]
    file = tmp_path / "any-node.yaml"
    file.write_text(yaml.safe_dump(content))
    started = command("pyflyte run --remote --copy all workflows/plan.py plan")
    assert started[-1] == FILE
    pyflyte("run", *WAITING, *started[1:-1], str(file), settings=settings)
    found = json.loads(done(cluster).outputs.literals["o0"].scalar.primitive.string_value)
    assert (found["derived"]["device"], found["nodes"]) == ("CPU", 1)
    assert found["instance"] == "c7i.large"
    assert found["price_per_hour"] > 0

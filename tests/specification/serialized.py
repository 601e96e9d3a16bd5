"""The protobufs of every task, workflow and launch plan, made by the real `pyflyte package` in a fixed environment.

What a `@dynamic` task adds when it runs is in no package: `specification.plans` compiles it for representative plans.
"""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from flyteidl.admin.launch_plan_pb2 import LaunchPlan
from flyteidl.admin.task_pb2 import TaskSpec
from flyteidl.admin.workflow_pb2 import WorkflowSpec
from flyteidl.core.dynamic_job_pb2 import DynamicJobSpec
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import Node, WorkflowTemplate
from google.protobuf.message import Message

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example/thriftune:1"
# Values that are in the environment of whoever registers, and may be in nothing that is registered.
PRIVATE = {
    "HF_TOKEN": "hf_private1", "HUGGING_FACE_HUB_TOKEN": "hf_private2", "WANDB_API_KEY": "private3",
    "AWS_SECRET_ACCESS_KEY": "private4", "THRIFTUNE_OUTPUTS": "private5",
}  # fmt: skip
_OUTPUTS = "THRIFTUNE_OUTPUTS"
# What a platform sets; the rest has its defaults.
SETTINGS = {
    "FLYTE_IMAGE": IMAGE,
    "THRIFTUNE_HUB_SECRET": "hub/token",
    "THRIFTUNE_WANDB_SECRET": "wandb/key",
    "THRIFTUNE_LABELS": "team=ml",
    "THRIFTUNE_NOTIFY": "ml@registry.example",
    "THRIFTUNE_RAW_OUTPUT": "s3://bucket/runs",
    "THRIFTUNE_RUN_STAMP": "golden",  # what is compiled here counts as a local run
}
_PLANS = "specification.plans"
_ARCHIVE, _PARTS = "package.tgz", "parts"
# The `@dynamic` task that adds the nodes of a plan.
PART = "workflows.finetune.train_on_plan"
_LONGEST_SECONDS = 300
_KINDS: dict[str, type[Message]] = {"1": TaskSpec, "2": WorkflowSpec, "3": LaunchPlan}
_Entity = TypeVar("_Entity", bound=Message)


@dataclass(frozen=True)
class Package:
    """Everything that is registered, by name.

    Attributes:
        tasks: Tasks, `@dynamic` ones among them.
        workflows: Workflows.
        launch_plans: Launch plans, the default one of each workflow among them.
        parts: What `@dynamic` tasks add to a run, by plan.
        content: The bytes of all files.
    """

    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    workflows: dict[str, WorkflowSpec] = field(default_factory=dict)
    launch_plans: dict[str, LaunchPlan] = field(default_factory=dict)
    parts: dict[str, DynamicJobSpec] = field(default_factory=dict)
    content: list[bytes] = field(default_factory=list)

    def template(self, task: str) -> TaskTemplate:
        """The template of a task."""
        return self.tasks[task].template

    def task_of(self, node: Node) -> TaskTemplate:
        """The template of a node's task; of a map task, which is made when it runs, that of the task for one item."""
        return self.template(node.task_node.reference_id.name.removesuffix("_map"))

    def graphs(self) -> dict[str, list[Node]]:
        """The nodes that do something, of workflows and plans."""
        workflows = {name: nodes_of(spec.template) for name, spec in self.workflows.items()}
        return {**workflows, **{name: list(part.nodes) for name, part in self.parts.items()}}

    def node(self, identifier: str) -> Node:
        """A node, by graph/node."""
        graph, _, node_id = identifier.partition("/")
        found = [node for node in self.graphs()[graph] if node.id == node_id]
        assert found, f"{identifier} is gone; the golden files still have it"
        return of_one(found[0])

    def pods(self) -> Iterator[tuple[str, TaskTemplate, Node]]:
        """Every node that becomes a pod: its identifier, its task and itself."""
        for graph, nodes in self.graphs().items():
            for node in nodes:
                if (one := of_one(node)).WhichOneof("target") == "task_node":
                    yield f"{graph}/{node.id}", self.task_of(one), one


def of_one(node: Node) -> Node:
    """A node, or of a map task the one for each item."""
    return node.array_node.node if node.WhichOneof("target") == "array_node" else node


def nodes_of(template: WorkflowTemplate) -> list[Node]:
    """The nodes of a workflow, what it does on failure among them."""
    failure = [template.failure_node] if template.HasField("failure_node") else []
    return [*template.nodes, *failure]


def package(directory: Path) -> Package:
    """Serialize everything, once, in processes of their own.

    Args:
        directory: A scratch directory, also the home of these processes.
    """
    make(directory)
    return read(directory)


def make(directory: Path) -> None:
    """Write what `read` reads into a directory."""
    archive, parts = directory / _ARCHIVE, directory / _PARTS
    parts.mkdir(parents=True)
    pyflyte = str(Path(sys.executable).parent / "pyflyte")
    source = ("--source", str(ROOT), "--image", IMAGE, "--output", str(archive))
    commands = ([pyflyte, "--pkgs", "workflows", "package", *source], [sys.executable, "-m", _PLANS, str(parts)])
    with ThreadPoolExecutor() as both:
        list(both.map(partial(_run, home=directory), commands))


def read(directory: Path) -> Package:
    """What `make` wrote into a directory."""
    result = Package()
    with tarfile.open(directory / _ARCHIVE) as files:
        for member in sorted(files.getmembers(), key=lambda member: member.name):
            _add(result, member.name, files.extractfile(member).read())
    for file in sorted((directory / _PARTS).iterdir()):
        result.parts[file.name] = _parsed(DynamicJobSpec, file.read_bytes())
        result.content.append(file.read_bytes())
    return result


def _run(command: list[str], home: Path) -> None:
    programs = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    # A folder of its own: what is compiled here counts as a local run, which writes down what it owns.
    private = {**PRIVATE, _OUTPUTS: str(home / PRIVATE[_OUTPUTS])}
    environment = {"PATH": programs, "HOME": str(home), "PYTHONPATH": str(ROOT / "tests"), **SETTINGS, **private}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-6000:]}")


def _add(package: Package, file: str, content: bytes) -> None:
    """One file of the archive: NN_name_KIND.pb."""
    kind = _KINDS[Path(file).stem.rpartition("_")[2]]
    entity = _parsed(kind, content)
    owner = {TaskSpec: package.tasks, WorkflowSpec: package.workflows, LaunchPlan: package.launch_plans}[kind]
    name = entity.id.name if isinstance(entity, LaunchPlan) else entity.template.id.name
    assert name not in owner, f"two of the name {name}"
    owner[name] = entity
    package.content.append(content)


def _parsed(kind: type[_Entity], content: bytes) -> _Entity:
    entity = kind()
    entity.ParseFromString(content)
    return entity

"""A file for every entity, for a person to read and a diff to show."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import yaml
from flyteidl.admin.launch_plan_pb2 import LaunchPlan
from flyteidl.core.interface_pb2 import VariableMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.types_pb2 import LiteralType
from flyteidl.core.workflow_pb2 import Node, NodeMetadata, TaskNodeOverrides
from flytekit.configuration import SERIALIZED_CONTEXT_ENV_VAR
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from specification import pods, rendering
from specification.pods import Pod
from specification.rendering import Schemas
from specification.serialized import PART, Package, nodes_of, of_one

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python scripts/specifications.py"
_HEADER = f"# Made by `{COMMAND}`. A node that says nothing of its pod has the one of its task.\n"
_SUFFIX = ".yaml"
_OF_POD = ("image", "command", "environment", "resources", "pod")


def documents(package: Package) -> dict[str, str]:
    """The content of every file, by its name."""
    schemas: Schemas = {}
    contents: dict[str, Any] = {}
    for name, spec in package.tasks.items():
        contents[f"{name}.task"] = _task(spec.template, schemas)
    for name, workflow in package.workflows.items():
        contents[f"{name}.workflow"] = _workflow(package, workflow.template, schemas)
    for name, plan in package.launch_plans.items():
        contents[f"{name}.launch_plan"] = _launch_plan(plan)
    for name, spec in package.parts.items():
        contents[f"{name}.plan"] = {"kind": "plan", "of": PART, "nodes": _nodes(package, list(spec.nodes))}
    contents["types"] = {name: schemas[name] for name in sorted(schemas)}
    return {name + _SUFFIX: _HEADER + _yaml(content) for name, content in contents.items()}


def write(package: Package) -> list[str]:
    """Make the files what the package is.

    Returns:
        The names of those that changed, came or went.
    """
    wanted = documents(package)
    present = {file.name: file.read_text(encoding="utf-8") for file in GOLDEN.glob(f"*{_SUFFIX}")}
    for name in present.keys() - wanted.keys():
        (GOLDEN / name).unlink()
    for name, content in wanted.items():
        if present.get(name) != content:
            (GOLDEN / name).write_text(content, encoding="utf-8")
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def names(kind: str) -> list[str]:
    """The entities of a kind that have a file: what tests are made for while they are collected."""
    return sorted(file.name.removesuffix(f".{kind}{_SUFFIX}") for file in GOLDEN.glob(f"*.{kind}{_SUFFIX}"))


def node_identifiers() -> list[str]:
    """The nodes of workflows and plans that run a task, as graph/node."""
    found = []
    for kind in ("workflow", "plan"):
        for name in names(kind):
            document = yaml.safe_load((GOLDEN / f"{name}.{kind}{_SUFFIX}").read_text(encoding="utf-8"))
            found += [f"{name}/{node}" for node, content in document["nodes"].items() if "task" in content]
    return found


def _task(task: TaskTemplate, schemas: Schemas) -> dict[str, Any]:
    metadata = task.metadata
    return _told(
        {
            "kind": "task",
            "type": f"{task.type}, version {task.task_type_version}",
            "interface": rendering.interface(task.interface, schemas),
            **_attempts(metadata),
            "cache": {
                "version": metadata.discovery_version,
                "serialize": metadata.cache_serializable,
                "ignored": sorted(metadata.cache_ignore_input_vars),
            }
            if metadata.discoverable
            else None,
            "deck": metadata.generates_deck.value,
            "podTemplateName": metadata.pod_template_name,
            "extendedResources": MessageToDict(task.extended_resources),
            "secrets": [MessageToDict(secret) for secret in task.security_context.secrets],
            "job": pods.job(task),
            **_pod(pods.merged(task)),
        }
    )


def _attempts(metadata: Any) -> dict[str, Any]:
    """What tasks and nodes both say of their attempts."""
    interruptible = metadata.interruptible if metadata.HasField("interruptible") else "as the run"
    return {
        "retries": metadata.retries.retries,
        "timeout": rendering.duration(metadata.timeout),
        "interruptible": interruptible,
    }


def _pod(pod: Pod) -> dict[str, Any]:
    """A pod, with what its container runs first."""
    container = dict(pod.container)
    own = {
        "image": container.pop("image"),
        "command": " ".join([*container.pop("command", []), *container.pop("args", [])]),
        "environment": {entry["name"]: _variable(entry) for entry in sorted(container.pop("env"), key=_name)},
        "resources": container.pop("resources"),
    }
    others = [c for c in pod.spec["containers"] if c["name"] != pod.primary]
    spec = {**pod.spec, "containers": [container, *others]}
    return {**own, "pod": _told(_sorted({"labels": pod.labels, "annotations": pod.annotations, "spec": spec}))}


def _workflow(package: Package, workflow: Any, schemas: Schemas) -> dict[str, Any]:
    outputs = workflow.interface.outputs.variables
    return _told(
        {
            "kind": "workflow",
            "interface": rendering.interface(workflow.interface, schemas),
            "metadata": MessageToDict(workflow.metadata),
            "defaults": MessageToDict(workflow.metadata_defaults),
            "nodes": _nodes(package, nodes_of(workflow)),
            "onFailure": workflow.failure_node.id,
            "outputs": {b.var: rendering.binding(b.binding, outputs[b.var].type) for b in workflow.outputs},
        }
    )


def _nodes(package: Package, nodes: list[Node]) -> dict[str, Any]:
    """Each node; one whose pod is that of an earlier node says so."""
    result: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for node in nodes:
        content = _node(package, node)
        own = {key: content[key] for key in _OF_POD if key in content}
        first = owners.setdefault(_yaml(own), node.id)
        if own and first != node.id:
            content = {**{key: value for key, value in content.items() if key not in own}, "podOf": first}
        result[node.id] = content
    return result


def _node(package: Package, node: Node) -> dict[str, Any]:
    one, after = of_one(node), sorted(node.upstream_node_ids)
    target = one.WhichOneof("target")
    if target != "task_node":
        return {target: MessageToDict(getattr(one, target)), "after": after}
    task, items = package.task_of(one), MessageToDict(node.array_node)
    return _told(
        {
            "task": task.id.name,
            "items": {name: value for name, value in items.items() if name != "node"},
            "inputs": _bindings(node, task.interface.inputs),
            "after": after,
            **_attempts(one.metadata),
            "cache": _cache(one.metadata),
            **_overrides(task, one.task_node.overrides),
        }
    )


def _bindings(node: Node, inputs: VariableMap) -> dict[str, Any]:
    """What the inputs of a node come from; those of a map task are lists where each item has its own."""
    kinds = {name: variable.type for name, variable in inputs.variables.items()}
    for item in of_one(node).inputs if node.HasField("array_node") else ():
        if item.binding.WhichOneof("value") == "collection":
            kinds[item.var] = LiteralType(collection_type=kinds[item.var])
    bound = {b.var: rendering.binding(b.binding, kinds[b.var]) for b in node.inputs}
    return dict(sorted(bound.items()))


def _cache(metadata: NodeMetadata) -> dict[str, Any]:
    fields = ("cacheable", "cache_version", "cache_serializable")
    return {field: getattr(metadata, field) for field in fields if metadata.HasField(field)}


def _overrides(task: TaskTemplate, overrides: TaskNodeOverrides) -> dict[str, Any]:
    """What the pod of a node is, where that is not what the task says."""
    if not overrides.ListFields():
        return {}
    declared, here = _pod(pods.merged(task)), _pod(pods.merged(task, overrides))
    return {key: value for key, value in here.items() if key in ("resources", "pod") or value != declared[key]}


def _launch_plan(plan: LaunchPlan) -> dict[str, Any]:
    spec = plan.spec
    inputs = {name: rendering.literal(value) for name, value in sorted(spec.fixed_inputs.literals.items())}
    defaults = {
        name: "required" if parameter.required else rendering.literal(parameter.default)
        for name, parameter in sorted(spec.default_inputs.parameters.items())
    }
    told = {"workflow_id", "entity_metadata", "default_inputs", "fixed_inputs"}
    rest = {field.json_name: value for field, value in spec.ListFields() if field.name not in told}
    rest = {name: MessageToDict(value) if isinstance(value, Message) else value for name, value in rest.items()}
    return _told(
        {
            "kind": "launch plan",
            "workflow": spec.workflow_id.name,
            **_sorted(MessageToDict(spec.entity_metadata)),
            "inputs": {"fixed": inputs, "default": defaults},
            **_sorted(rest),
        }
    )


def _told(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is not there. False and 0 are; so is the `none` of a time limit."""
    return {key: value for key, value in content.items() if value not in (None, "", [], {})}


def _variable(entry: dict[str, Any]) -> Any:
    """The value of an environment variable."""
    value = entry.get("value", entry.get("valueFrom"))
    if entry["name"] != SERIALIZED_CONTEXT_ENV_VAR:
        return value
    # What a `@dynamic` task compiles its nodes with. Where the sources were is another place on every machine.
    settings = json.loads(gzip.decompress(base64.b64decode(value)))
    return rendering.pruned({key: item for key, item in settings.items() if key != "source_root"})


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"])


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Readable, sort_keys=False, width=118, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Short lists on one line, and no references: what two pods have in common is written twice."""

    def represent_list(self, data: list[Any]) -> yaml.Node:
        plain = not any(isinstance(item, list | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Readable.add_representer(list, _Readable.represent_list)

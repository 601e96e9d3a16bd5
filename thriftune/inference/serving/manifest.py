"""Kubernetes manifests of a server: a Deployment and its Service, for vLLM in its own image or for our own server.

Nothing is sent to a cluster: what comes out is YAML to read and to apply. vLLM's flags are those of the version below,
from its documentation; it was not run here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from thriftune.config.benchmark_run import ADAPTER_NAME, BASE
from thriftune.config.rules import with_user
from thriftune.errors import ConfigError, Problem
from thriftune.inference.serving import containers, vllm
from thriftune.inference.serving.containers import Container
from thriftune.planning.serving import Served, ServingPlan
from thriftune.redaction import unsigned
from thriftune.urls import is_remote

# As pod_templates has them, which knows Kubernetes and is not imported here: tests compare.
INSTANCE_LABEL = "node.kubernetes.io/instance-type"
GPU = "nvidia.com/gpu"
USER = 10001
_NAME_LABEL = "app.kubernetes.io/name"
_KUBERNETES_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
_MODELS, _KEY_FOLDER = "/models", "/var/run/thriftune"
_CLAIM = "claim:"
_SECONDS_PER_GIB = 20  # reading weights from a network disk at 50 MB/s: an assumption
_STARTING_SECONDS = 300  # what else a server does before it answers, such as compiling: an assumption
_PROBE_SECONDS = 10
_LEAVING_SECONDS = 5  # until no proxy sends requests to a pod that is going
# Brings a folder of a store to a disk; both come as arguments.
_BRING = (
    "import sys; from pathlib import Path; from thriftune.stores import transfer; "
    "transfer.download(sys.argv[1], Path(sys.argv[2]))"
)


@dataclass(frozen=True)
class ManifestRequest:
    """What to write manifests for.

    Attributes:
        name: Name of the Deployment and the Service.
        served: What is served, and by whom.
        plan: The node that holds it.
        files: Where the model's files are: `claim:NAME` for a volume that has them, or the URL of a folder in a store,
            which an init container brings.
        base: Folder of the base model there.
        adapters: Folders of the adapters there, by the names that they are served under.
        configurations: Local directories of the adapters, to see whether vLLM can serve them; by the same names.
        image: This project's image: for our own server, and to bring files from a store.
        secret: Name of the Secret whose key `api-key` holds the key that clients have to send.
        answer_tokens: Tokens of the longest answer, of those that a question and its answer may have.
        replicas: Number of pods.
        port: Port of the Service.
        node_label: Label of the nodes that holds their type; empty leaves the choice to resources.
        service_account: Account of the pods, by which a store knows them; empty for the namespace's own.
        drain_seconds: How long accepted requests are answered once a pod has to go.
    """

    name: str
    served: Served
    plan: ServingPlan
    files: str
    base: str
    adapters: Mapping[str, str]
    configurations: Mapping[str, Path] = field(default_factory=dict)
    image: str = ""
    secret: str = "thriftune-serving"  # noqa: S105 - a name
    answer_tokens: int = 512
    replicas: int = 1
    port: int = 8000
    node_label: str = INSTANCE_LABEL
    service_account: str = ""
    drain_seconds: int = 60


class _Written(yaml.SafeDumper):
    """Writes what is there twice twice, as people read and change manifests."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifests(request: ManifestRequest) -> str:
    """A Deployment and a Service as YAML, with what was planned as comments.

    Args:
        request: What to write them for.

    Returns:
        Two YAML documents. No secret is in them.

    Raises:
        UserError: Names, numbers or places that cannot be used; a GPU that vLLM does not serve on; an adapter that vLLM
            cannot serve, by its name.
    """
    _require_usable(request)
    if request.served.engine == "vllm":
        vllm.require_servable(request.plan.node.hardware, request.served, request.configurations)
    documents = yaml.dump_all([_deployment(request), _service(request)], Dumper=_Written, sort_keys=False, width=120)
    return "".join(f"# {line}\n" for line in _comments(request)) + documents


def _comments(request: ManifestRequest) -> Iterator[str]:
    served, plan = request.served, request.plan
    yield f"Memory of each device: {plan.sentence}"
    yield (
        f"For {served.sequences} questions at a time, of {served.tokens:,} tokens with their answers, "
        f"{len(served.adapters)} adapters, and a base in {served.bits} bits."
    )
    if served.engine == "vllm":
        yield f"{vllm.IMAGE}: not run by those who wrote this; try it before you rely on it."
    yield f"The key that clients send: kubectl create secret generic {request.secret} --from-file=api-key=FILE"


def _container(request: ManifestRequest) -> Container:
    """The container that serves."""
    paths = {name: f"{_MODELS}/{path}" for name, path in request.adapters.items()}
    base = f"{_MODELS}/{request.base}" if request.base else _MODELS
    if request.served.engine == "vllm":
        return vllm.container(request.served, request.plan.node, base, paths, request.secret)
    return containers.own(request.served, request.image, base, paths, f"{_KEY_FOLDER}/api-key", _budget(request))


def _budget(request: ManifestRequest) -> containers.Budget:
    return containers.Budget(request.answer_tokens, request.drain_seconds)


def _deployment(request: ManifestRequest) -> dict[str, Any]:
    labels = {_NAME_LABEL: request.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": request.name, "labels": labels},
        "spec": {
            "replicas": request.replicas,
            "selector": {"matchLabels": labels},
            # The old pod goes first: a second node with GPUs may not be there.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": _pod(request)},
        },
    }


def _pod(request: ManifestRequest) -> dict[str, Any]:
    node, container = request.plan.node, _container(request)
    account = {"serviceAccountName": request.service_account} if request.service_account else {}
    selector = {request.node_label: node.instance} if request.node_label else {}
    toleration = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
    spec: dict[str, Any] = {
        **account,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": request.drain_seconds + _LEAVING_SECONDS + _PROBE_SECONDS,
        "nodeSelector": selector,
        "tolerations": [toleration] if node.request.gpus else [],
        "initContainers": _bringing(request),
        "containers": [_serving(request, container)],
        "volumes": _volumes(request),
    }
    return {name: value for name, value in spec.items() if value not in ({}, [])}


def _serving(request: ManifestRequest, container: Container) -> dict[str, Any]:
    probe = {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5}
    starting = _STARTING_SECONDS + _SECONDS_PER_GIB * request.plan.needed_gib * request.plan.node.devices
    return {
        "name": "server",
        "image": container.image,
        **({"command": container.command} if container.command else {}),
        "args": container.args,
        "env": container.env,
        "ports": [{"name": "http", "containerPort": containers.PORT}],
        "resources": _resources(request),
        "securityContext": _unprivileged(),
        "startupProbe": {**_get(container.ready), **probe, "failureThreshold": round(starting / _PROBE_SECONDS)},
        "readinessProbe": {**_get(container.ready), **probe, "failureThreshold": 2},
        "livenessProbe": {**_get("/health"), **probe, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVING_SECONDS)]}}},
        "volumeMounts": [
            {"name": "models", "mountPath": _MODELS, "readOnly": True},
            {"name": "dshm", "mountPath": "/dev/shm"},  # noqa: S108 - the path is the point
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            *([{"name": "key", "mountPath": _KEY_FOLDER, "readOnly": True}] if request.served.engine == "own" else []),
        ],
    }


def _resources(request: ManifestRequest, *, without_gpus: bool = False) -> dict[str, Any]:
    asked = request.plan.node.request
    gpus = {GPU: str(asked.gpus)} if asked.gpus and not without_gpus else {}
    disk = {"ephemeral-storage": f"{asked.disk_gib}Gi"}
    wanted = {"cpu": str(asked.cpus), "memory": f"{asked.memory_gib}Gi", **disk, **gpus}
    return {"requests": wanted, "limits": dict(wanted)}


def _bringing(request: ManifestRequest) -> list[dict[str, Any]]:
    """The init container that brings files from a store; none where a volume has them."""
    if not is_remote(request.files):
        return []
    return [
        {
            "name": "bring",
            "image": request.image,
            "command": ["python", "-c", _BRING, request.files, _MODELS],
            "resources": _resources(request, without_gpus=True),
            "securityContext": _unprivileged(),
            "volumeMounts": [{"name": "models", "mountPath": _MODELS}, {"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108
        }
    ]


def _volumes(request: ManifestRequest) -> list[dict[str, Any]]:
    asked = request.plan.node.request
    disk, claim = f"{asked.disk_gib}Gi", request.files.removeprefix(_CLAIM)
    models: dict[str, Any] = {"emptyDir": {"sizeLimit": disk}}
    if not is_remote(request.files):
        models = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    # Processes of several GPUs talk through it.
    shared_gib = max(asked.shared_memory_gib, request.plan.node.devices)
    shared = {"emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}}
    volumes = [{"name": "models", **models}, {"name": "dshm", **shared}, {"name": "scratch", "emptyDir": {}}]
    if request.served.engine == "own":
        items = [{"key": "api-key", "path": "api-key"}]
        volumes.append({"name": "key", "secret": {"secretName": request.secret, "items": items, "defaultMode": 0o440}})
    return volumes


def _service(request: ManifestRequest) -> dict[str, Any]:
    labels = {_NAME_LABEL: request.name}
    ports = [{"name": "http", "port": request.port, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": request.name, "labels": labels},
        "spec": {"type": "ClusterIP", "selector": labels, "ports": ports},
    }


def _unprivileged() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}}


def _require_usable(request: ManifestRequest) -> None:
    """Refuse names, places and numbers of which no pod can be made.

    Raises:
        ConfigError: With all problems at once.
    """
    if problems := list(_problems(request)):
        raise ConfigError(problems)


def _problems_of_files(files: str) -> Iterator[Problem]:
    if is_remote(files):
        yield from with_user("files", files)
        if unsigned(files) != files:
            remedy = "Leave its signature out, and give the pods an account that may read it."
            yield Problem("files", files, "is signed, and manifests are kept where many may read them.", remedy)
    elif not files.startswith(_CLAIM) or not _KUBERNETES_NAME.fullmatch(files.removeprefix(_CLAIM)):
        yield Problem("files", files, "is neither a claim nor a URL.", "Use claim:NAME, or a URL like s3://...")


def _problems(request: ManifestRequest) -> Iterator[Problem]:
    for what, name in {"name": request.name, "secret": request.secret}.items():
        if not _KUBERNETES_NAME.fullmatch(name):
            yield Problem(what, name, "is no name in Kubernetes.", "Use small letters, digits and dashes, at most 50.")
    yield from _problems_of_files(request.files)
    if not request.image and (is_remote(request.files) or request.served.engine == "own"):
        yield Problem("image", "", "this project's image is needed here.", "Build one with `make image`, and name it.")
    for name, path in {BASE: request.base, **request.adapters}.items():
        if path.startswith("/") or ".." in path.split("/") or "$(" in path or "=" in path:
            yield Problem(
                f"adapters.{name}", path, "is no folder below that of the files.", "Use a path like run/adapter."
            )
    for name in request.adapters:
        if name == BASE or not ADAPTER_NAME.fullmatch(name):
            remedy = f"Use letters, digits, dots and dashes, at most 40, and not {BASE}."
            yield Problem(f"adapters.{name}", request.adapters[name], "is no name for an adapter.", remedy)
    if {adapter.name for adapter in request.served.adapters} != request.adapters.keys():
        named = ", ".join(request.adapters)
        yield Problem("adapters", named, "are others than memory was planned for.", "Give both the same adapters.")
    if not 0 < request.answer_tokens < request.served.tokens:
        message = f"leaves no room for a question in {request.served.tokens} tokens."
        yield Problem("answer_tokens", str(request.answer_tokens), message, "Use fewer, and at least 1.")
    for what, number in {"replicas": request.replicas, "drain_seconds": request.drain_seconds}.items():
        if number < 1:
            yield Problem(what, str(number), "is less than one.", "Use at least 1.")
    if not 0 < request.port < 2**16:
        yield Problem("port", str(request.port), "is no port.", "Use 1 to 65535.")

"""Kubernetes manifests of a server: a Deployment and its Service, for vLLM in its own image or for our own server.

Nothing is sent to a cluster: what comes out is YAML to read and to apply. vLLM's flags are those of the version below,
from its documentation; it was not run here.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from thriftune.errors import ConfigError
from thriftune.inference.serving import containers, vllm
from thriftune.inference.serving.containers import Container
from thriftune.inference.serving.manifest_request import CLAIM, ManifestRequest, problems_of
from thriftune.urls import is_remote

# As pod_templates has them, which knows Kubernetes and is not imported here: tests compare.
GPU = "nvidia.com/gpu"
USER = 10001
_NAME_LABEL = "app.kubernetes.io/name"
_MODELS, _KEY_FOLDER = "/models", "/var/run/thriftune"
_SECONDS_PER_GIB = 20  # reading weights from a network disk at 50 MB/s: an assumption
_STARTING_SECONDS = 300  # what else a server does before it answers, such as compiling: an assumption
_IMAGE_SECONDS = 900  # until a node is there and has the image: an assumption
_PROBE_SECONDS = 10
_LEAVING_SECONDS = 5  # until no proxy sends requests to a pod that is going
# Brings a folder of a store to a disk; both come as arguments.
_BRING = (
    "import sys; from pathlib import Path; from thriftune.stores import transfer; "
    "transfer.download(sys.argv[1], Path(sys.argv[2]))"
)


# Texts that kubectl reads as numbers or truth, and PyYAML does not: 1e3, 089, y.
_ELSEWHERE_NO_TEXT = re.compile(r"[-+.]?[0-9.].*|[yYnN]", re.DOTALL)


class _Written(yaml.SafeDumper):
    """Writes what is there twice twice, as people read and change manifests; and texts so that all read texts."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value is written again where it is used again.

        Args:
            data: The value.
        """
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text, in quotes where another reader of YAML would take it for something else.

        Args:
            data: The text.
        """
        node = super().represent_str(data)
        if _ELSEWHERE_NO_TEXT.fullmatch(data):
            node.style = "'"
        return node


_Written.add_representer(str, _Written.represent_str)


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
    if problems := list(problems_of(request)):
        raise ConfigError(problems)
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
    return containers.Budget(request.answer_tokens, request.drain_seconds, request.limits)


def _deployment(request: ManifestRequest) -> dict[str, Any]:
    labels = {_NAME_LABEL: request.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": request.name, "labels": labels},
        "spec": {
            "replicas": request.replicas,
            # Else a start that takes longer than ten minutes is reported as failed.
            "progressDeadlineSeconds": _IMAGE_SECONDS + _reading_seconds(request) + _starting_seconds(request),
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
        # Else a Service named vllm would set VLLM_PORT in the pods beside it, which vLLM takes for its own.
        "enableServiceLinks": False,
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


def _starting_seconds(request: ManifestRequest) -> int:
    """How long a server may take until it answers, once its files are there."""
    held = request.plan.needed_gib * request.plan.node.devices
    return _STARTING_SECONDS + round(_SECONDS_PER_GIB * held)


def _reading_seconds(request: ManifestRequest) -> int:
    """How long its files may take from a store."""
    return round(_SECONDS_PER_GIB * request.plan.node.request.disk_gib) if is_remote(request.files) else 0


def _serving(request: ManifestRequest, container: Container) -> dict[str, Any]:
    probe = {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5}
    return {
        "name": "server",
        "image": container.image,
        **({"command": container.command} if container.command else {}),
        "args": container.args,
        "env": container.env,
        "ports": [{"name": "http", "containerPort": containers.PORT}],
        "resources": _resources(request),
        "securityContext": _unprivileged(),
        "startupProbe": {
            **_get(container.ready),
            **probe,
            "failureThreshold": _starting_seconds(request) // _PROBE_SECONDS,
        },
        "readinessProbe": {**_get(container.ready), **probe, "failureThreshold": 2},
        "livenessProbe": {**_get("/health"), **probe, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_seconds_before_sigterm(request))]}}},
        "volumeMounts": [
            {"name": "models", "mountPath": _MODELS, "readOnly": True},
            {"name": "dshm", "mountPath": "/dev/shm"},  # noqa: S108 - the path is the point
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            *([{"name": "key", "mountPath": _KEY_FOLDER, "readOnly": True}] if request.served.engine == "own" else []),
        ],
    }


def _seconds_before_sigterm(request: ManifestRequest) -> int:
    """How long a pod that has to go still answers before its server hears of it.

    Our own server then answers what it has accepted; vLLM of this version cuts that off.

    Source: https://github.com/vllm-project/vllm/pull/36666, which lets a later version wait.
    """
    return _LEAVING_SECONDS + (request.drain_seconds if request.served.engine == "vllm" else 0)


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
    disk, claim = f"{asked.disk_gib}Gi", request.files.removeprefix(CLAIM)
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

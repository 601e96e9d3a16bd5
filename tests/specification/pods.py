"""The pod that Flyte makes of a task and what a node overrides, by the rules of its engine.

Only what every cluster does: what an operator configures on top (default tolerations and labels, platform limits, which
cut requests and limits down without a word, the base pod template of a project) is not known here.

Source: flyteorg/flyte, paths in flyteplugins/go/tasks/ unless they begin with flytepropeller.
"""

from dataclasses import dataclass
from typing import Any

from flyteidl.core.tasks_pb2 import Container, Resources, TaskTemplate
from flyteidl.core.workflow_pb2 import TaskNodeOverrides
from google.protobuf.json_format import MessageToDict

Spec = dict[str, Any]
GPU = "nvidia.com/gpu"  # GpuResourceName, pluginmachinery/flytek8s/config/config.go
ACCELERATOR_LABEL = "k8s.amazonaws.com/accelerator"  # GpuDeviceNodeLabel, the same
SECRETS_LABEL = "inject-flyte-secrets"  # pluginmachinery/utils/secrets/secrets.go
PRIMARY = "primary_container_name"
# A task without a pod template has a container of the execution's name.
GENERATED = "generated-name"
_JOB_CONTAINER = "pytorch"


@dataclass(frozen=True)
class Pod:
    """A pod, or each worker of a PyTorchJob.

    Attributes:
        primary: Name of the container that is the task.
        labels: Labels, without those that every execution puts on (execution-id, project, node-id ...).
        annotations: Annotations.
        spec: The pod spec, as Kubernetes writes it in JSON.
    """

    primary: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Spec

    @property
    def container(self) -> Spec:
        """The container that is the task."""
        return next(container for container in self.spec["containers"] if container["name"] == self.primary)

    def resources(self, kind: str) -> dict[str, str]:
        """Its requests or limits."""
        return dict(self.container["resources"].get(kind, {}))


def merged(task: TaskTemplate, overrides: TaskNodeOverrides | None = None) -> Pod:
    """The pod of a task, on a node with overrides or without.

    Raises:
        ValueError: Flyte would refuse it.
    """
    overrides = overrides or TaskNodeOverrides()
    primary, labels, annotations, spec = _raw(task, overrides)
    if primary not in [container["name"] for container in spec["containers"]]:
        raise ValueError(f"primary container {primary} not defined")
    for container in spec["containers"]:
        asked = [_named(container.get("resources", {}).get(kind, {})) for kind in ("requests", "limits")]
        if container["name"] == primary:
            asked = [{**mine, **theirs} for mine, theirs in zip(asked, _of(overrides.resources), strict=True)]
        container["resources"] = _completed(*asked)
    spec.setdefault("restartPolicy", "Never")  # UpdatePod, flytek8s/pod_helper.go
    if task.security_context.secrets:
        # flytepropeller/pkg/controller/nodes/task/k8s/task_exec_context.go; the annotations name the secrets.
        labels[SECRETS_LABEL] = "true"
    _select_accelerator(task, overrides, spec)
    annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false"  # DefaultAnnotations, config.go
    if task.type == "pytorch":
        # OverridePrimaryContainerName, plugins/k8s/kfoperators/common/common_operator.go
        next(c for c in spec["containers"] if c["name"] == primary)["name"] = _JOB_CONTAINER
        primary = _JOB_CONTAINER
    elif len(spec["containers"]) == 1:
        annotations[PRIMARY] = primary  # plugins/k8s/pod/plugin.go
    return Pod(primary, labels, annotations, spec)


def job(task: TaskTemplate) -> Spec:
    """What the PyTorchJob of a task says beside its pods; empty for a plain pod.

    Source: plugins/k8s/kfoperators/pytorch/pytorch.go. The Master is removed where there is an elastic policy.
    """
    if task.type != "pytorch":
        return {}
    assert task.task_type_version == 1, "version 0 has another message"
    custom = MessageToDict(task.custom)
    workers = custom["workerReplicas"]
    elastic = custom["elasticConfig"]
    return {
        "kind": "PyTorchJob",
        "workers": int(workers.get("common", workers)["replicas"]),
        "restartPolicy": "Never",
        "elastic": {
            "min": int(elastic["minReplicas"]),
            "max": int(elastic["maxReplicas"]),
            "processesPerNode": int(elastic["nprocPerNode"]),
            "restarts": int(elastic.get("maxRestarts", 0)),
            "rendezvous": elastic["rdzvBackend"],
        },
        "runPolicy": custom.get("runPolicy", {}),
    }


def _raw(task: TaskTemplate, overrides: TaskNodeOverrides) -> tuple[str, dict[str, str], dict[str, str], Spec]:
    """BuildRawPod and ApplyPodTemplateOverride, flytek8s/pod_helper.go.

    A template on a node takes the place of the task's spec, whole; its labels and annotations are added to the task's.
    """
    labels, annotations = dict(task.k8s_pod.metadata.labels), dict(task.k8s_pod.metadata.annotations)
    if task.WhichOneof("target") == "container":
        primary, spec = GENERATED, {"containers": [_container(task.container)]}
    else:
        primary, spec = task.config[PRIMARY], _whole(MessageToDict(task.k8s_pod.pod_spec))
    if overrides.pod_template.HasField("pod_spec"):
        primary = overrides.pod_template.primary_container_name
        spec = _whole(MessageToDict(overrides.pod_template.pod_spec))
        labels.update(overrides.pod_template.metadata.labels)
        annotations.update(overrides.pod_template.metadata.annotations)
    if overrides.container_image:
        next(c for c in spec["containers"] if c["name"] == primary)["image"] = overrides.container_image
    return primary, labels, annotations, spec


def _whole(value: Any) -> Any:
    """Numbers of a protobuf Struct are floating point, and those of a pod are not."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _container(container: Container) -> Spec:
    """BuildRawContainer, flytek8s/container_helper.go."""
    requests, limits = _of(container.resources)
    return {
        "name": GENERATED,
        "image": container.image,
        "args": list(container.args),
        "command": list(container.command),
        "env": [{"name": pair.key, "value": pair.value} for pair in container.env],
        "resources": {"requests": requests, "limits": limits},
    }


def _of(resources: Resources) -> list[dict[str, str]]:
    """Requests and limits as Kubernetes names them: ToK8sResourceRequirements, flytek8s/utils.go."""
    return [
        _named({Resources.ResourceName.Name(e.name).lower().replace("_", "-"): e.value for e in entries})
        for entries in (resources.requests, resources.limits)
    ]


def _named(resources: dict[str, str]) -> dict[str, str]:
    """SanitizeGPUResourceRequirements, flytek8s/container_helper.go."""
    return {GPU if name == "gpu" else name: value for name, value in resources.items()}


def _completed(requests: dict[str, str], limits: dict[str, str]) -> Spec:
    """What is asked for by one of request and limit is asked for by both, CPUs too: AdjustOrDefaultResource, the same.

    CPUs and memory that neither names become the platform's defaults.
    """
    merged = {"requests": {**limits, **requests}, "limits": {**requests, **limits}}
    return {kind: dict(sorted(resources.items())) for kind, resources in merged.items()}


def _select_accelerator(task: TaskTemplate, overrides: TaskNodeOverrides, spec: Spec) -> None:
    """ApplyGPUNodeSelectors, flytek8s/pod_helper.go: for pods that have GPUs, beside what the pod selects itself."""
    wanted = [message.extended_resources for message in (overrides, task)]
    device = next((w.gpu_accelerator.device for w in wanted if w.HasField("gpu_accelerator")), "")
    if not device or not any(GPU in container["resources"]["limits"] for container in spec["containers"]):
        return
    required = (
        spec.setdefault("affinity", {})
        .setdefault("nodeAffinity", {})
        .setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    for term in required.setdefault("nodeSelectorTerms", [{}]):
        requirement = {"key": ACCELERATOR_LABEL, "operator": "In", "values": [device]}
        term.setdefault("matchExpressions", []).append(requirement)
    taint = {"key": ACCELERATOR_LABEL, "operator": "Equal", "value": device, "effect": "NoSchedule"}
    spec.setdefault("tolerations", []).append(taint)

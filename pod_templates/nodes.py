"""The nodes that a pod runs on."""

from flytekit import PodTemplate
from kubernetes.client import V1Toleration

from pod_templates.composing import add_entries, copied, set_once

# GPU nodes are commonly tainted with this key, so that nothing else lands on them; it is also the resource's name.
GPU = "nvidia.com/gpu"
# Every cloud sets it on its nodes; the kubelet does not set it on other machines.
INSTANCE_LABEL = "node.kubernetes.io/instance-type"


def on_instance(
    instance: str, template: PodTemplate | None = None, *, gpus: int = 0, label: str = INSTANCE_LABEL
) -> PodTemplate:
    """A pod that runs on nodes of one instance type only.

    Args:
        instance: Instance type as in the catalogue, such as g4dn.metal.
        template: The template to build on.
        gpus: GPUs of the pod; with at least one it tolerates the taint of GPU nodes.
        label: Label of the nodes that holds the type; empty leaves the choice to resources and accelerator.

    Returns:
        A new template.

    Raises:
        ConflictError: The template selects another type.
    """
    new, spec, _ = copied(template)
    if label:
        add_entries(spec, "node_selector", {label: instance})
    if gpus:
        spec.tolerations = [*(spec.tolerations or []), V1Toleration(key=GPU, operator="Exists", effect="NoSchedule")]
    return new


def with_grace(seconds: int, template: PodTemplate | None = None) -> PodTemplate:
    """A pod with a grace period between being told to stop and being killed.

    Args:
        seconds: The grace period. Kubernetes' own default is 30; a spot node on AWS has 120 in all.
        template: The template to build on.

    Raises:
        ConflictError: The template has another grace period.
    """
    new, spec, _ = copied(template)
    set_once(spec, "termination_grace_period_seconds", seconds)
    return new


def tolerating_gpu_nodes(template: PodTemplate | None = None) -> PodTemplate:
    """A pod that may run on tainted GPU nodes, of any type."""
    return on_instance("", template, gpus=1, label="")

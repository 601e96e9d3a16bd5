"""Shared memory for the workers of a node.

Kubernetes gives a container 64 MiB of /dev/shm; NCCL's ring buffers and DeepSpeed's CPU collectives need more. Exactly
one owner may mount it: this template. `Elastic` must therefore say `increase_shared_mem=False`, and no task may say
`shared_memory=` (the client accepts both together, and the backend rejects the pod).
"""

from flytekit import PodTemplate
from kubernetes.client import V1Container, V1EmptyDirVolumeSource, V1PodSpec, V1Toleration, V1Volume, V1VolumeMount

PRIMARY = "primary"  # the container Flyte merges the task's own into
_VOLUME = "dshm"


def with_shared_memory(size: str) -> PodTemplate:
    """A pod whose /dev/shm is memory of the given size, and that may be scheduled on GPU nodes.

    Args:
        size: Kubernetes quantity, as 16Gi. What is used of it counts against the container's memory limit.

    Returns:
        A new template with one primary container.
    """
    container = V1Container(name=PRIMARY, volume_mounts=[V1VolumeMount(name=_VOLUME, mount_path="/dev/shm")])  # noqa: S108
    memory = V1Volume(name=_VOLUME, empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=size))
    # GPU nodes are commonly tainted with this key, so that nothing else lands on them.
    toleration = V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    return PodTemplate(
        primary_container_name=PRIMARY,
        pod_spec=V1PodSpec(containers=[container], volumes=[memory], tolerations=[toleration]),
    )

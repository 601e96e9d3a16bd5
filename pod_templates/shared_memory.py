"""Shared memory for the workers of a node.

Kubernetes gives a container 64 MiB of /dev/shm; NCCL's ring buffers and DeepSpeed's CPU collectives need more. Only
this template may mount it. So `Elastic` must say `increase_shared_mem=False`, and no task may say `shared_memory=`
(the client accepts both together, and the backend rejects the pod).
"""

from flytekit import PodTemplate
from kubernetes.client import V1EmptyDirVolumeSource, V1Volume

from pod_templates.composing import copied, mount

PATH = "/dev/shm"  # noqa: S108 - the path is the point
_VOLUME = "dshm"


def with_shared_memory(size: str, template: PodTemplate | None = None) -> PodTemplate:
    """A pod whose /dev/shm is memory of the given size.

    Args:
        size: Kubernetes quantity, such as 16Gi. The used part counts against the container's memory limit.
        template: The template to build on.

    Returns:
        A new template.

    Raises:
        ConflictError: Something is already mounted there.
    """
    new, spec, container = copied(template)
    memory = V1Volume(name=_VOLUME, empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=size))
    mount(spec, container, memory, PATH)
    return new

"""Local disk for downloads, offloading, and results before they are uploaded.

It is mounted at /tmp, where flytekit puts the directories it downloads, and tempfile everything else.
"""

from typing import Any, Literal

from flytekit import PodTemplate
from kubernetes.client import (
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1EnvVarSource,
    V1EphemeralVolumeSource,
    V1ObjectFieldSelector,
    V1ObjectMeta,
    V1PersistentVolumeClaimSpec,
    V1PersistentVolumeClaimTemplate,
    V1PersistentVolumeClaimVolumeSource,
    V1Volume,
    V1VolumeResourceRequirements,
)

from pod_templates.composing import copied, mount

PATH = "/tmp"  # noqa: S108 - a volume of the pod's own
_VOLUME = "scratch"

ScratchKind = Literal["emptyDir", "class", "claim"]


def with_scratch(size: str, template: PodTemplate | None = None, *, kind: ScratchKind, name: str = "") -> PodTemplate:
    """A pod with room for temporary files.

    Args:
        size: Kubernetes quantity, such as 200Gi.
        template: The template to build on.
        kind: emptyDir: the node's disk, which is local NVMe if the node's set-up puts the kubelet there, and counts as
            ephemeral storage. class: a volume of the storage class `name` that is created and deleted with the pod
            (local NVMe by TopoLVM, network disks, file systems). claim: the ReadWriteMany claim `name`, in which each
            pod has its own folder.
        name: Name of the storage class or the claim.

    Returns:
        A new template.

    Raises:
        ConflictError: Something is already mounted at /tmp.
    """
    new, spec, container = copied(template)
    volume = V1Volume(name=_VOLUME, **_source(kind, size, name))
    mount(spec, container, volume, PATH, "thriftune/$(POD_NAME)" if kind == "claim" else None)
    if kind == "claim":
        own_name = V1EnvVarSource(field_ref=V1ObjectFieldSelector(field_path="metadata.name"))
        container.env = [*(container.env or []), V1EnvVar(name="POD_NAME", value_from=own_name)]
    return new


def _source(kind: ScratchKind, size: str, name: str) -> dict[str, Any]:
    if kind == "emptyDir":
        return {"empty_dir": V1EmptyDirVolumeSource(size_limit=size)}
    if kind == "claim":
        return {"persistent_volume_claim": V1PersistentVolumeClaimVolumeSource(claim_name=name)}
    claim = V1PersistentVolumeClaimSpec(
        access_modes=["ReadWriteOnce"],
        storage_class_name=name,
        resources=V1VolumeResourceRequirements(requests={"storage": size}),
    )
    template = V1PersistentVolumeClaimTemplate(metadata=V1ObjectMeta(labels={"app": "thriftune"}), spec=claim)
    return {"ephemeral": V1EphemeralVolumeSource(volume_claim_template=template)}

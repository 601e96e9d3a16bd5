"""How templates are built: each function takes a template, returns a new one, and refuses contradictions.

flytekit changes the templates it is given. A template shared by two tasks would be changed for both.
"""

import copy
from typing import Any

from flytekit import PodTemplate
from kubernetes.client import V1Container, V1EnvVar, V1PodSpec, V1Volume, V1VolumeMount

PRIMARY = "primary"  # the container that Flyte merges with the task's own


class ConflictError(ValueError):
    """Two functions want different values in one pod."""


def conflict(what: str, present: object, asked: object, remedy: str = "Decide it in one place.") -> ConflictError:
    """The error for two values of one field."""
    return ConflictError(f"{what}: the template says {present!r}, but {asked!r} was asked for. {remedy}")


def bare() -> PodTemplate:
    """A pod with one container and nothing decided."""
    return PodTemplate(primary_container_name=PRIMARY, pod_spec=V1PodSpec(containers=[V1Container(name=PRIMARY)]))


def copied(template: PodTemplate | None) -> tuple[PodTemplate, V1PodSpec, V1Container]:
    """A copy of a template to change, with its pod and its primary container; a bare template if there is none.

    Args:
        template: The template to copy.

    Raises:
        ConflictError: The template has no primary container.
    """
    new = copy.deepcopy(template) if template is not None else bare()
    spec = new.pod_spec
    names = [container.name for container in spec.containers]
    if new.primary_container_name not in names:
        raise conflict("containers", names, new.primary_container_name, "Name the container that runs the task.")
    return new, spec, spec.containers[names.index(new.primary_container_name)]


def set_once(owner: Any, attribute: str, value: object) -> None:
    """Set a field, unless it already has another value.

    Args:
        owner: The object with the field.
        attribute: Name of the field.
        value: Value of the field.

    Raises:
        ConflictError: It has another value.
    """
    present = getattr(owner, attribute)
    if present is not None and present != value:
        raise conflict(attribute, present, value)
    setattr(owner, attribute, value)


def add_entries(owner: Any, attribute: str, entries: dict[str, str]) -> None:
    """Add entries to a mapping, such as labels.

    Args:
        owner: The object with the mapping.
        attribute: Name of the field with the mapping.
        entries: Entries to add.

    Raises:
        ConflictError: One of them already has another value.
    """
    present: dict[str, str] = dict(getattr(owner, attribute) or {})
    for name, value in entries.items():
        if present.setdefault(name, value) != value:
            raise conflict(f"{attribute}[{name}]", present[name], value)
    setattr(owner, attribute, present or None)


def mount(
    spec: V1PodSpec, container: V1Container, volume: V1Volume, path: str, folder_expression: str | None = None
) -> None:
    """Mount a volume, or a folder in it, at a path of a container.

    Args:
        spec: The pod.
        container: The container.
        volume: The volume.
        path: Path in the container.
        folder_expression: Folder in the volume, which may use environment variables; None mounts all of it.

    Raises:
        ConflictError: Something else is mounted there, or the pod has another volume of that name.
    """
    mounts, volumes = container.volume_mounts or [], spec.volumes or []
    for other in mounts:
        if other.mount_path == path:
            raise conflict(f"the volume at {path}", other.name, volume.name, "A path has one owner.")
    for named in volumes:
        if named.name == volume.name:
            raise conflict(f"volume {volume.name}", named, volume, "Give it another name.")
    container.volume_mounts = [
        *mounts,
        V1VolumeMount(name=volume.name, mount_path=path, sub_path_expr=folder_expression),
    ]
    spec.volumes = [*volumes, volume]


def with_annotations(annotations: dict[str, str], template: PodTemplate | None = None) -> PodTemplate:
    """Add annotations to the pod.

    Args:
        annotations: Values by name.
        template: The template to build on.

    Raises:
        ConflictError: One of them already has another value.
    """
    new, _, _ = copied(template)
    add_entries(new, "annotations", annotations)
    return new


def with_environment(variables: dict[str, str], template: PodTemplate | None = None) -> PodTemplate:
    """Add environment variables to the container.

    Args:
        variables: Values by name. Flyte adds those of the task.
        template: The template to build on.

    Raises:
        ConflictError: One of them already has another value.
    """
    new, _, container = copied(template)
    present = {entry.name: entry for entry in container.env or []}
    for name, value in variables.items():
        entry = present.setdefault(name, V1EnvVar(name=name, value=value))
        if entry.value != value:
            raise conflict(f"environment variable {name}", entry.value or entry.value_from, value)
    container.env = list(present.values()) or None
    return new

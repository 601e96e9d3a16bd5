"""How templates are built: each factory takes a template and gives a new one, and refuses what contradicts it.

flytekit changes the templates it is given, and so does whoever holds one. A template that two tasks shared would be
changed for both.
"""

import copy
from typing import Any

from flytekit import PodTemplate
from kubernetes.client import V1Container, V1EnvVar, V1PodSpec, V1Volume, V1VolumeMount

PRIMARY = "primary"  # the container Flyte merges the task's own into


class ConflictError(ValueError):
    """Two factories want different things of one pod."""


def conflict(what: str, present: object, asked: object, remedy: str = "Decide it in one place.") -> ConflictError:
    """The error for two values of one thing."""
    return ConflictError(f"{what}: the template says {present!r}, and {asked!r} was asked for. {remedy}")


def bare() -> PodTemplate:
    """A pod with one container and nothing decided."""
    return PodTemplate(primary_container_name=PRIMARY, pod_spec=V1PodSpec(containers=[V1Container(name=PRIMARY)]))


def copied(template: PodTemplate | None) -> tuple[PodTemplate, V1PodSpec, V1Container]:
    """A copy of a template to change, its pod and its primary container; a bare one where there is none.

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
    """Set a field that nobody has set to something else.

    Raises:
        ConflictError: It has another value.
    """
    present = getattr(owner, attribute)
    if present is not None and present != value:
        raise conflict(attribute, present, value)
    setattr(owner, attribute, value)


def add_entries(owner: Any, attribute: str, entries: dict[str, str]) -> None:
    """Add entries to a mapping, such as labels.

    Raises:
        ConflictError: One of them is there with another value.
    """
    present: dict[str, str] = dict(getattr(owner, attribute) or {})
    for name, value in entries.items():
        if present.setdefault(name, value) != value:
            raise conflict(f"{attribute}[{name}]", present[name], value)
    setattr(owner, attribute, present or None)


def mount(
    spec: V1PodSpec, container: V1Container, volume: V1Volume, path: str, folder_expression: str | None = None
) -> None:
    """Mount a volume, or the folder of it that an expression names, at a path of a container.

    Raises:
        ConflictError: Something else is mounted there, or the pod has a volume of that name.
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
    """Annotations of the pod.

    Args:
        annotations: By name.
        template: What to build on.

    Raises:
        ConflictError: One of them has another value there.
    """
    new, _, _ = copied(template)
    add_entries(new, "annotations", annotations)
    return new


def with_environment(variables: dict[str, str], template: PodTemplate | None = None) -> PodTemplate:
    """Environment variables of the container.

    Args:
        variables: By name. Flyte puts those of the task beside them.
        template: What to build on.

    Raises:
        ConflictError: One of them has another value there.
    """
    new, _, container = copied(template)
    present = {entry.name: entry for entry in container.env or []}
    for name, value in variables.items():
        entry = present.setdefault(name, V1EnvVar(name=name, value=value))
        if entry.value != value:
            raise conflict(f"environment variable {name}", entry.value or entry.value_from, value)
    container.env = list(present.values()) or None
    return new

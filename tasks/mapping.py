"""Map tasks: one task for each item of a list, known to Flyte by one name however many may run at a time."""

import functools
from typing import Any

from flytekit import PythonFunctionTask
from flytekit.configuration import SerializationSettings
from flytekit.core.array_node_map_task import ArrayNodeMapTask
from flytekit.models.task import K8sPod

from tasks.connections import with_usual_level


class MapTask(ArrayNodeMapTask):
    """flytekit 1.16's map task, with a name of its own, and a command that unpacks the uploaded code once.

    Flyte's cache knows a result by its task's name, and flytekit puts a digest of the number of pods at a time into it:
    a run with another number would make everything anew. Where nodes override the pod, as ours do, flytekit puts the
    command that unpacks the code twice before the task's own (translator.py, get_serializable_array_node_map_task).
    Remove `get_k8s_pod` when it does not.
    """

    @property
    def name(self) -> str:
        """Name of the task, after that of the task for one item."""
        return f"{self._run_task.name}_map"

    def get_k8s_pod(self, settings: SerializationSettings) -> K8sPod:
        """The pod; the prefix of its command is for this one call.

        Args:
            settings: Settings of the registration.
        """
        pod = super().get_k8s_pod(settings)
        self.set_command_prefix(None)
        return pod

    def get_command(self, settings: SerializationSettings) -> list[str]:
        """The command, with flytekit's level of logging as other tasks have it.

        Args:
            settings: Settings of the registration.
        """
        prefix = self._cmd_prefix or []
        own = super().get_command(settings)[len(prefix) :]
        return [*prefix, *with_usual_level(settings, own)]


def mapped(
    task: PythonFunctionTask[Any], parallel: int | None, *, min_success_ratio: float = 1.0, **bound: Any
) -> MapTask:
    """A task for each item of lists, which are given when it is called.

    Args:
        task: The task for one item.
        parallel: Most pods at a time; None for no limit but the workflow's.
        min_success_ratio: Share of the items that have to succeed, above 0; those that do not are None where it is
            below 1.
        **bound: Inputs that all items have.
    """
    return MapTask(functools.partial(task, **bound), concurrency=parallel, min_success_ratio=min_success_ratio)

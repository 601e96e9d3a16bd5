"""How every task is declared: image, resources, pod, retries, time limit, secrets; one function per kind of task."""

import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flytekit import Cache, PodTemplate, PythonFunctionTask, Resources, Secret, task
from flytekit.extend import TaskPlugins

from pod_templates import (
    ScratchKind,
    on_instance,
    tolerating_gpu_nodes,
    unprivileged,
    with_annotations,
    with_scratch,
    with_shared_memory,
)
from tasks import type_descriptions
from tasks.connections import ClosesConnections
from tasks.failures import ExplainsErrors
from tasks.image import RequiresImage
from tasks.interruption import EndsWhenInterrupted
from tasks.platform import REGISTRATION_ONLY
from tasks.settings import CHECKOUT, PLATFORM, POD_ENVIRONMENT, WANDB_KEY
from thriftune import artifacts
from thriftune.data.prepare import PREPARATION
from thriftune.planning import catalogue

type_descriptions.remember()

# Increase a version when the task makes something else from the same inputs.
PLAN_CACHE = "7"
FETCH_CACHE = "5"
PREPARE_CACHE = f"{PREPARATION}.2"  # .2 since the fingerprint is its key; the rows depend on PREPARATION
TRAIN_CACHE = "6"
BENCHMARK_CACHE = "1"
GENERATE_CACHE = "1"

# Logs, caches in the home directory, compiled kernels.
_BESIDE_TEMPORARY_FILES_GIB = 2


class OnImage:
    """The configuration of an ordinary task whose image is checked."""


class OnImageTask(EndsWhenInterrupted, RequiresImage, ClosesConnections, ExplainsErrors, PythonFunctionTask[OnImage]):
    """An ordinary task, or a dynamic workflow."""


TaskPlugins.register_pythontask_plugin(OnImage, OnImageTask)


@dataclass(frozen=True)
class CpuPod:
    """The resources that a task without a GPU asks for.

    Attributes:
        memory: Memory, as a Kubernetes quantity.
        cpus: Number of CPUs.
        disk_gib: Disk, in GiB.
    """

    memory: str = PLATFORM.memory
    cpus: int = PLATFORM.cpu
    disk_gib: int = PLATFORM.disk_gib

    def options(self) -> dict[str, Any]:
        """The resources as options of a task, or as overrides of a node."""
        disk = ephemeral_storage(self.disk_gib)
        asked = Resources(cpu=str(self.cpus), mem=self.memory, ephemeral_storage=disk)
        return {"requests": asked, "limits": asked, "pod_template": bare_pod(self.disk_gib)}


PREPARE_POD = CpuPod(PLATFORM.prepare_memory, PLATFORM.prepare_cpu, PLATFORM.prepare_disk_gib)


def cpu_task(pod: CpuPod | None = None, *secrets: Secret) -> dict[str, Any]:
    """Options of a task that needs no GPU.

    Args:
        pod: Its resources; None for what the platform gives such tasks.
        *secrets: Secrets that it may read.
    """
    return {
        "task_config": OnImage(),
        **_every_task(PLATFORM.cpu_timeout_hours, *secrets),
        **(pod or CpuPod()).options(),
    }


def hub_task(pod: CpuPod | None = None) -> dict[str, Any]:
    """Options of a task that needs no GPU and may access the hub."""
    return cpu_task(pod, *hub_secrets())


def dynamic_task() -> dict[str, Any]:
    """Options of a dynamic workflow: of the pod that creates its nodes, with a time limit that includes these nodes.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go; a node may take twice its limit, including
        retries.
    """
    nodes_in_a_row = 2 * PLATFORM.gpu_timeout_hours + 4 * PLATFORM.cpu_timeout_hours
    return cpu_task() | {"timeout": timedelta(hours=2 * nodes_in_a_row)}


def node_task(task_config: Any = None, *secrets: Secret) -> dict[str, Any]:
    """Options of a task on the nodes of a plan. Its resources follow from the plan (tasks/provisioning.py).

    Args:
        task_config: The configuration of an Elastic task, with its number of nodes; None for an ordinary task.
        *secrets: Secrets that it may read.
    """
    disk = Resources(ephemeral_storage=ephemeral_storage(PLATFORM.disk_gib))
    return {
        "task_config": task_config or OnImage(),
        **_every_task(PLATFORM.gpu_timeout_hours, *secrets),
        "requests": disk,
        "limits": disk,
        "pod_template": with_shared_memory(PLATFORM.shared_memory, tolerating_gpu_nodes(bare_pod(PLATFORM.disk_gib))),
        "interruptible": PLATFORM.interruptible,
    }


def training_node_task(task_config: Any, *secrets: Secret) -> dict[str, Any]:
    """Options of a task that trains on the nodes of a plan: tried again as long as it makes progress.

    Args:
        task_config: As in `node_task`.
        *secrets: Secrets that it may read.
    """
    return node_task(task_config, *secrets) | {"retries": PLATFORM.training_retries}


def declared_as(name: str, body: Callable[..., Any], **options: Any) -> Any:
    """Declare a task with a common body, as a function of another name: Flyte identifies a task by that name.

    Args:
        name: The name; the task has to be a variable of this name in the module of the body.
        body: The body.
        **options: Options of the task.
    """
    decorate: Callable[..., Any] = task(**options, enable_deck=True, deck_fields=())
    function = types.FunctionType(body.__code__, body.__globals__, name)
    function.__annotations__, function.__doc__, function.__qualname__ = body.__annotations__, body.__doc__, name
    return decorate(function)


def generating_task() -> dict[str, Any]:
    """Options of the task that answers prompts. Its resources are settings, as there is no plan."""
    disk, gpus, instance = PLATFORM.generate_disk_gib, PLATFORM.generate_gpus, PLATFORM.generate_instance
    gpu = {"gpu": str(gpus)} if gpus else {}
    cpus, memory, storage = str(PLATFORM.generate_cpu), PLATFORM.generate_memory, ephemeral_storage(disk)
    asked = Resources(cpu=cpus, mem=memory, ephemeral_storage=storage, **gpu)
    if instance:  # a pod for a node type that does not exist would wait forever
        catalogue.load(PLATFORM.catalogue).get(instance)
    label = PLATFORM.node_label if instance else ""
    pod = with_shared_memory(PLATFORM.shared_memory, on_instance(instance, bare_pod(disk), gpus=gpus, label=label))
    return node_task() | {"requests": asked, "limits": asked, "pod_template": pod}


def marking_registration(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a task whose pod is annotated with a digest of the launch plans: their settings and run files.

    These change no task, so without the digest Flyte would refuse to register other launch plans, as another structure
    of the same version. Use it for one task that `@dynamic` does not declare: a pod does not know these settings.

    Args:
        options: Options of the task.
    """
    settings = PLATFORM.model_dump(include=set(REGISTRATION_ONLY))
    files = [CHECKOUT / settings[name] for name in ("nightly_config", "weekly_config")]
    runs = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    mark = {"thriftune/launch-plans": artifacts.key_of(json.dumps(settings), *runs)}
    return options | {"pod_template": with_annotations(mark, options["pod_template"])}


def bare_pod(disk_gib: int) -> PodTemplate:
    """The pod that all others extend: without privileges, and with space for temporary files."""
    kind, name = _scratch()
    # flytekit makes the version of `pyflyte run --remote` from code, image and pod templates. With a digest of the
    # settings in these, other settings are another version; without it, Flyte would refuse them as another structure of
    # the same version.
    marked = with_annotations({"thriftune/settings": artifacts.key_of(json.dumps(POD_ENVIRONMENT))})
    pod = unprivileged(marked, service_account_token=PLATFORM.service_account_token)
    return with_scratch(f"{disk_gib}Gi", pod, kind=kind, name=name)


def ephemeral_storage(disk_gib: int) -> str:
    """What a pod asks of its node's own disk: a little, and its temporary files unless they are on another volume."""
    temporary = disk_gib if _scratch()[0] == "emptyDir" else 0
    return f"{temporary + _BESIDE_TEMPORARY_FILES_GIB}Gi"


def _scratch() -> tuple[ScratchKind, str]:
    """The volume for /tmp of a pod: its kind, and the name of the storage class or claim."""
    kind, _, name = PLATFORM.scratch.partition(":")
    kinds: dict[str, ScratchKind] = {"class": "class", "claim": "claim"}
    return kinds.get(kind, "emptyDir"), name


def cache(version: str, *ignored_inputs: str) -> Cache:
    """Cache a task by its inputs; two runs that need the same result at the same time make it once."""
    return Cache(version=version, serialize=True, ignored_inputs=ignored_inputs)


def hub_secrets() -> list[Secret]:
    """The secrets of a task that accesses the hub; none if none is configured, as a pod could wait for it forever."""
    group, _, key = PLATFORM.hub_secret.partition("/")
    return [Secret(group=group, key=key)] if PLATFORM.hub_secret else []


def wandb_secrets() -> list[Secret]:
    """The secrets of a task that reports to Weights & Biases, under the name that the library reads."""
    group, _, key = PLATFORM.wandb_secret.partition("/")
    variable = Secret.MountType.ENV_VAR
    return (
        [Secret(group=group, key=key, mount_requirement=variable, env_var=WANDB_KEY)] if PLATFORM.wandb_secret else []
    )


def _every_task(timeout_hours: float, *secrets: Secret) -> dict[str, Any]:
    return {
        "container_image": PLATFORM.image,
        "retries": PLATFORM.retries,
        "timeout": timedelta(hours=timeout_hours),
        "environment": POD_ENVIRONMENT,
        "secret_requests": list(secrets),
    }

"""Give the nodes inside `@dynamic` the resources of the plan: requests, accelerator and pod template."""

from typing import Any

from flytekit import PodTemplate, Resources, current_context
from flytekit.extras.accelerators import GPUAccelerator

from pod_templates import (
    in_one_zone,
    on_instance,
    with_environment,
    with_gang_scheduling,
    with_grace,
    with_shared_memory,
)
from tasks.declaring import CpuPod, bare_pod, ephemeral_storage
from tasks.settings import PLATFORM
from thriftune.planned_node import PlannedNode
from thriftune.planning.node_environment import node_environment
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.pod_requests import PodRequest
from thriftune.training_plan import TrainingPlan

_LONGEST_LABEL = 63


def on_planned_node(node: Any, plan: PlannedNode, *, as_job: bool = False) -> Any:
    """Give one node of a `@dynamic` workflow the hardware that was planned.

    Args:
        node: What calling a task inside `@dynamic` returned.
        plan: The node that was planned, or the plan of a training.
        as_job: Whether it is the training, on all nodes of the plan with all their processes; else one process on one
            node.

    Returns:
        The node; unchanged if the plan is for this machine.
    """
    if plan.instance == THIS_MACHINE:
        return node
    resources, accelerator = node_resources(plan), plan.hardware.accelerator
    return node.with_overrides(
        requests=resources,
        limits=resources,
        accelerator=GPUAccelerator(accelerator) if accelerator and PLATFORM.accelerator else None,
        pod_template=node_pod(plan, as_job=as_job),
    )


def on_cpu_node(node: Any, plan: PlannedNode, request: PodRequest) -> Any:
    """Give one node of a `@dynamic` workflow the memory and disk for the models that it holds.

    Args:
        node: What calling a task inside `@dynamic` returned.
        plan: The plan.
        request: The resources of the task.

    Returns:
        The node; unchanged if the plan is for this machine.
    """
    if plan.instance == THIS_MACHINE:
        return node
    cpus = request.cpus or PLATFORM.cpu
    if not plan.hardware.is_gpu:  # a cluster for runs on CPUs may have no larger node than the plan's
        cpus = min(cpus, plan.request.cpus)
    pod = CpuPod(f"{request.memory_gib}Gi", cpus, request.disk_gib + PLATFORM.disk_gib)
    return node.with_overrides(**pod.options())


def node_resources(plan: PlannedNode) -> Resources:
    """The resources that each pod asks for, from its plan."""
    request = plan.request
    gpus = {"gpu": str(request.gpus)} if request.gpus else {}
    disk = ephemeral_storage(request.disk_gib)
    return Resources(cpu=str(request.cpus), mem=f"{request.memory_gib}Gi", ephemeral_storage=disk, **gpus)


def node_pod(plan: PlannedNode, *, as_job: bool) -> PodTemplate:
    """The pod of a planned node; the pods of a job on several nodes stay together.

    Args:
        plan: The plan.
        as_job: As in `on_planned_node`.
    """
    request, nodes, processes = plan.request, 1, 1
    if as_job and isinstance(plan, TrainingPlan):
        nodes, processes = plan.nodes, plan.processes_per_node
    pod = on_instance(plan.instance, bare_pod(request.disk_gib), gpus=request.gpus, label=PLATFORM.node_label)
    pod = with_grace(PLATFORM.grace_seconds, pod)
    pod = with_shared_memory(f"{request.shared_memory_gib}Gi", pod)
    pod = with_environment(node_environment(plan, processes, nodes), pod)
    if nodes == 1 or not isinstance(plan, TrainingPlan):
        return pod
    job = f"{current_context().execution_id.name}-{plan.fingerprint}"[-_LONGEST_LABEL:].lstrip("-")
    if PLATFORM.one_zone:
        pod = in_one_zone(job, pod)
    return with_gang_scheduling(PLATFORM.gang, job, nodes, PLATFORM.queue, pod) if PLATFORM.gang else pod

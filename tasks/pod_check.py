"""Before a task on GPUs downloads anything: whether its pod is what was planned."""

import logging
import math
from dataclasses import replace

from kubernetes.utils.quantity import parse_quantity

from tasks import settings
from tasks.settings import PLATFORM
from tasks.transfer import transient_errors_retried
from thriftune.errors import PodError
from thriftune.planned_node import NodeRequest, PlannedNode
from thriftune.planning import catalogue, pod
from thriftune.planning.pod import Promise
from thriftune.pod_reading import read_pod

logger = logging.getLogger("thriftune.tasks.pod_check")

_GIB = 2**30
# Code of a pod that has more GPUs than planned.
_MORE = "gpu-not-planned"


def require_job(nodes: int) -> None:
    """Refuse to train in a pod whose job is not of so many nodes. A local run has no job.

    Args:
        nodes: Number of nodes that the task is declared for.

    Raises:
        PodError: The pod is in no job, or in one of another size.
    """
    if nodes == 1 or settings.is_local():
        return
    problem = pod.job_problem(nodes, settings.nodes_of_job())
    if problem:
        raise PodError([problem])


def require_planned(plan: PlannedNode) -> None:
    """Refuse a pod that is not what a plan says of its nodes. Local runs, and those on CPUs, are not looked at.

    Args:
        plan: The plan.

    Raises:
        PodError: It differs in a way that another attempt would not change.
        FlyteRecoverableException: Another attempt may find a node that is as planned.
    """
    if not settings.is_local():
        _require(pod.promise_of(plan))


def require_for_trials(plan: PlannedNode, slots: int) -> None:
    """Refuse a pod that has less than so many trials of a plan need at a time. Local runs, and CPUs, are not looked at.

    Args:
        plan: The plan of one of them, on one GPU.
        slots: Trials at a time.

    Raises:
        PodError: It has less in a way that another attempt would not change.
        FlyteRecoverableException: Another attempt may find a node that has enough.
    """
    if not settings.is_local() and plan.hardware.is_gpu:
        promise = pod.promise_of(plan)
        _require(replace(promise, request=replace(promise.request, gpus=slots)), may_have_more=True)


def require_for_generating() -> None:
    """Refuse a pod that is not what the settings say of the task that answers prompts.

    Raises:
        PodError: It differs in a way that another attempt would not change.
        FlyteRecoverableException: Another attempt may find a node that is as set.
    """
    if settings.is_local():
        return
    memory, shared = (_gib(text) for text in (PLATFORM.generate_memory, PLATFORM.shared_memory))
    gpus, disk = PLATFORM.generate_gpus, PLATFORM.generate_disk_gib
    # Kubernetes makes /dev/shm no larger than the pod's memory.
    request = NodeRequest(PLATFORM.generate_cpu, memory, min(shared, memory), disk, gpus)
    if not PLATFORM.generate_instance:
        _require(Promise(request))
        return
    nodes = catalogue.load(PLATFORM.catalogue)
    node = nodes.get(PLATFORM.generate_instance)
    _require(Promise(request, nodes.device(node.device), node.gpu_gib))


def _require(promise: Promise, *, may_have_more: bool = False) -> None:
    if not promise.request.gpus:
        return
    found = read_pod(settings.shown_gpus())
    problems = pod.differences(promise, found)
    with transient_errors_retried():
        pod.require_none(problem for problem in problems if not (may_have_more and problem.code == _MORE))
    for said in pod.passing(promise, found):
        logger.info("%s", said)
    names = ", ".join(gpu.name for gpu in found.gpus)
    logger.info("This pod is as planned: %s, driver %s", names, found.driver.version or "unknown")


def _gib(quantity: str) -> int:
    return math.floor(float(parse_quantity(quantity)) / _GIB)  # type: ignore[no-untyped-call]

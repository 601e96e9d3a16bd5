"""Whether a pod is what its task was planned for: a comparison of readings, and the words for each way to differ.

docs/pods.md has a table of them.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from thriftune.errors import PodError, Problem, TransientError
from thriftune.gpu_readings import DrivenGpu, Gpu, Trial, TriedGpu
from thriftune.hardware import DEVICES, Device, device_of
from thriftune.planned_node import NodeRequest, PlannedNode
from thriftune.pod_reading import PodReading

# A pod gets exactly what it asks for; the rest is for rounding.
_EXACT = 0.99
# Drivers differ by 0.2 GiB in what they show of a GPU (thriftune/planning/catalogue.yaml).
_SHOWN = 0.98
# A context of CUDA holds about as much, and an idle GPU less than a tenth of it.
_HELD_GIB = 0.5
# The first driver of each major version of CUDA, which runs all minor ones.
# Source: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
_FIRST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# Another node, or the same one later, may not have them. Whatever else differs is the same wherever a pod runs, and
# trying again would only take more nodes.
_OF_THIS_NODE = {"gpu-shared", "gpu-unusable"}

_HIDING = "CUDA_VISIBLE_DEVICES"
# What torch says where it finds no GPU, and nothing that is broken.
_FINDS_NONE = ("No CUDA GPUs are available", "Found no NVIDIA driver")
_CUT = "Flyte cuts what a task asks for down to its task_resources.limits, without a word: raise {what} there."
_PLUGINS = (
    "tasks: {task-plugins: {enabled-plugins: [container, sidecar, k8s-array, pytorch], default-for-task-types: "
    "{container: container, sidecar: sidecar, container_array: k8s-array, pytorch: pytorch}}}"
)


@dataclass(frozen=True)
class Promise:
    """What a pod was planned to be.

    Attributes:
        request: What it asks for.
        device: Kind of its GPUs; None for any.
        gpu_gib: Memory of each GPU as the driver shows it, in GiB; 0 for any.
    """

    request: NodeRequest
    device: Device | None = None
    gpu_gib: float = 0.0


def promise_of(plan: PlannedNode) -> Promise:
    """What a plan says of the pod of each of its nodes."""
    return Promise(plan.request, plan.hardware, plan.device_limit_gib)


def job_problem(nodes: int, joined: str | None) -> Problem | None:
    """Why a pod of a job of several nodes will not meet the others.

    Args:
        nodes: Number of nodes that the task is declared for.
        joined: The least and the most nodes of the job that the pod is in, as in 2:2; None if it is in none.

    Returns:
        The problem; None if it is in a job of this size.
    """
    if joined is None:
        message = "this pod is in no PyTorchJob, and would wait for the others in vain: Flyte's plugin pytorch is off."
        remedy = f"Turn it on in Flyte's configuration, beside your other plugins (docs/cluster.md): {_PLUGINS}"
        return Problem.coded("pod-no-job", "nodes", nodes, message, remedy)
    if joined not in (f"{nodes}:{nodes}", f"{nodes}"):
        message = f"the PyTorchJob of this pod has {joined} (least:most), and its pods would wait for others in vain."
        remedy = "Look for what changes a PyTorchJob after Flyte has made it: a webhook, a queue."
        return Problem.coded("pod-no-job", "nodes", nodes, message, remedy)
    return None


def differences(promise: Promise, found: PodReading) -> list[Problem]:
    """Everything in which a pod is less, or something else, than planned.

    Args:
        promise: What was planned, with at least one GPU.
        found: What the pod has.
    """
    return [*_of_gpus(promise, found), *_cut_down(promise.request, found)]


def passing(promise: Promise, found: PodReading) -> list[str]:
    """What to say of GPUs that are of no kind in the table, and may be used in place of the planned one.

    Args:
        promise: What was planned.
        found: What the pod has, which differs in nothing.

    Returns:
        A sentence for each kind of them.
    """
    device = promise.device
    names = sorted({gpu.name for gpu in found.gpus if device and _passes_for(gpu, device)})
    return [f"{name} is of no known kind, and used as the {device.name} of the catalogue." for name in names if device]


def require_none(problems: Iterable[Problem]) -> None:
    """Refuse a pod that is not what was planned.

    Args:
        problems: How it differs.

    Raises:
        TransientError: Another attempt may find a node that is as planned.
        PodError: It differs in a way that another attempt would not change.
    """
    problems = list(problems)
    if not problems:
        return
    error = PodError(problems)
    if all(problem.code in _OF_THIS_NODE for problem in problems):
        raise TransientError(str(error))
    raise error


def _of_gpus(promise: Promise, found: PodReading) -> list[Problem]:
    planned = promise.request.gpus
    hidden = list(_hidden(planned, found))
    problems = [*hidden, *_of_torch(found, is_hidden=bool(hidden))]
    if not found.gpus:
        return problems or [_no_gpu(planned, found)]
    problems += _numbered(_of_driven(gpu, found.trial) for gpu in found.driver.gpus)
    if any(gpu.is_divided for gpu in found.driver.gpus):  # of parts, number, kind and memory mean nothing
        return problems
    whole = _numbered(_of_whole(gpu, promise, found.trial) for gpu in found.gpus)
    return [*([] if hidden else _gpu_count(planned, found)), *problems, *whole]


def _hidden(planned: int, found: PodReading) -> Iterator[Problem]:
    """Whether an environment variable hides GPUs that the pod has."""
    value, seen = found.variables.get(_HIDING), len(found.trial.gpus) if found.trial else 0
    if value is None:
        return
    names_all = set(map(str, range(len(found.driver.gpus)))) <= set(value.replace(" ", "").split(","))
    is_partly = 0 < seen < planned <= len(found.driver.gpus) and not names_all
    if value in ("", "-1") or is_partly:
        message = f"{planned} planned, and {_HIDING} is {value!r} in this pod."
        remedy = "Remove it from Flyte's default-env-vars, from the pod template or from the image."
        yield Problem.coded("gpu-not-visible", "GPUs", seen, message, remedy)


def _no_gpu(planned: int, found: PodReading) -> Problem:
    if found.driver.is_broken:
        return _unusable("GPUs", "", f"torch cannot use them: NVML says: {found.driver.error}")
    said = {"NVML": found.driver.error, "torch": found.trial.error if found.trial else ""}
    says = [f"{who} says: {' '.join(words.split())}. " for who, words in said.items() if words]
    variables = [f"{name} is {value!r}. " for name, value in found.variables.items()]
    message = f"{planned} planned, and this pod sees none. {''.join([*says, *variables])}".strip()
    remedy = (
        "Install NVIDIA's device plugin on the GPU nodes, with its container runtime as the default, and keep "
        "gpu in Flyte's task_resources.limits."
    )
    return Problem.coded("gpu-not-visible", "GPUs", 0, message, remedy)


def _gpu_count(planned: int, found: PodReading) -> Iterator[Problem]:
    got, shown = len(found.gpus), len(found.driver.gpus)
    if got < planned and found.driver.is_broken:
        yield _unusable("GPUs", str(got), f"{planned} planned, and NVML says: {found.driver.error}")
    elif got < planned and shown > got:
        yield _unusable("GPUs", str(got), f"{planned} planned, and NVML shows {shown}, of which torch finds {got}")
    elif got < planned:
        message, remedy = f"{planned} planned.", _CUT.format(what="gpu")
        yield Problem.coded("pod-cut-down", "GPUs", got, message, f"{remedy} Or GPUs are shared (time slicing).")
    if got > planned:  # a training in one process would spread its rows over all of them
        message = f"{planned} planned: the pods of this node are not kept off each other's GPUs."
        remedy = "Let the device plugin alone give GPUs to pods: no NVIDIA_VISIBLE_DEVICES in an image, no privileges."
        yield Problem.coded("gpu-not-planned", "GPUs", got, message, remedy)


def _of_torch(found: PodReading, *, is_hidden: bool) -> Iterator[Problem]:
    """Why torch can see no GPU, unless that is because there is none, or it is hidden."""
    driver, trial = found.driver, found.trial
    if trial is None or trial.gpus:
        return
    if not trial.is_importable:
        message, remedy = f"it cannot be imported: {_line(trial.error)}.", "Use an image that is whole (docs/image.md)."
        yield Problem.coded("gpu-torch-broken", "torch", trial.torch, message, remedy)
        return
    if trial.torch and not trial.cuda:
        message, remedy = "it is built without CUDA.", "Register with the image for GPUs (docs/image.md)."
        yield Problem.coded("gpu-torch-without-cuda", "torch", trial.torch, message, remedy)
        return
    known, needed = max(driver.cuda, _cuda_in(trial.error)), int(trial.cuda.split(".")[0] or 0)
    if (0, 0) < known < (needed, 0):
        first = f", which needs a driver from {_FIRST_DRIVER[needed]} on" if needed in _FIRST_DRIVER else ""
        message = (
            f"it runs CUDA {_dotted(known)} at most, and torch {trial.torch} is built for CUDA {trial.cuda}{first}."
        )
        remedy = "Update the driver of the GPU nodes."
        yield Problem.coded("gpu-driver-too-old", "GPU driver", driver.version, message, remedy)
        return
    if is_hidden or not driver.gpus:
        finds_none = not trial.error or any(words in trial.error for words in _FINDS_NONE)
        if finds_none or driver.is_broken:  # what NVML says of a broken driver is more
            return
    yield _unusable("GPUs", "", f"torch cannot use them: {trial.error}")


def _cuda_in(words: str) -> tuple[int, int]:
    """The CUDA of the driver, from torch's words; (0, 0) if they do not say."""
    match = re.search(r"too old \(found version (\d+)\)", words)
    return (int(match[1]) // 1000, int(match[1]) % 1000 // 10) if match else (0, 0)


def _of_driven(gpu: DrivenGpu, trial: Trial | None) -> Iterator[Problem]:
    """What is wrong with a GPU as the driver shows it."""
    if gpu.is_divided:
        parts = ", ".join(sorted({f"{part.memory_gib:.1f}" for part in trial.gpus})) if trial else ""
        message = f"MIG is on, and this pod has a part of it only{parts and f' ({parts} GiB)'}."
        remedy = "Turn MIG off on the nodes for training (GPU operator: nvidia.com/mig.config=all-disabled)."
        yield Problem.coded("gpu-divided", "", gpu.name, message, remedy)
    elif gpu.held_gib > _HELD_GIB:
        by = f": {', '.join(gpu.holders)}" if gpu.holders else ", and cannot be seen from this pod"
        message = f"another process holds {gpu.held_gib:.1f} GiB of its memory{by}."
        remedy = "Nothing else may use the GPUs of a pod: no time slicing, no MPS, nothing outside of Kubernetes."
        yield Problem.coded("gpu-shared", "", gpu.name, message, remedy)


def _of_whole(gpu: Gpu, promise: Promise, trial: Trial | None) -> Iterator[Problem]:
    """What is wrong with a GPU that is not divided, as torch sees it, or else the driver."""
    value = f"{gpu.name} ({gpu.memory_gib:.1f} GiB, compute capability {_dotted(gpu.capability)})"
    if promise.device and not (_is_of(gpu, promise.device) or _passes_for(gpu, promise.device)):
        remedy = (
            "Let pods select their nodes, by THRIFTUNE_INSTANCE_LABEL or THRIFTUNE_ACCELERATOR and the nodes' labels; "
            "or correct the node type or the device in THRIFTUNE_CATALOGUE."
        )
        yield Problem.coded("gpu-other-kind", "", value, f"{promise.device.name} planned.", remedy)
    elif gpu.memory_gib < _SHOWN * promise.gpu_gib:
        message, remedy = (
            f"{promise.gpu_gib:.1f} GiB planned.",
            "Correct gpu_gib of the node type in THRIFTUNE_CATALOGUE.",
        )
        yield Problem.coded("gpu-too-little-memory", "", value, message, remedy)
    if trial and gpu.capability < trial.least_capability:
        message = f"torch {trial.torch} has code for compute capability {_dotted(trial.least_capability)} and later."
        yield Problem.coded("gpu-too-old", "", value, message, "Use newer GPUs, or an image with a torch for these.")
    elif isinstance(gpu, TriedGpu) and gpu.error:
        yield _unusable("", gpu.name, f"torch cannot use it: {gpu.error}")


def _is_of(gpu: Gpu, device: Device) -> bool:
    """Whether it is a GPU of this kind, which may be the catalogue's own and tell no names."""
    if not device.driver_names and device.is_like(gpu.memory_gib, gpu.capability):
        return True
    return _kind(gpu, device).name == device.name


def _passes_for(gpu: Gpu, device: Device) -> bool:
    """Whether it is of no known kind, and runs what the kind runs that the catalogue calls it."""
    is_known = _kind(gpu, device).name in {device.name, *DEVICES}
    return not is_known and gpu.capability == device.compute_capability


def _kind(gpu: Gpu, planned: Device) -> Device:
    """The kind of a GPU: the planned one rather than one that is shipped, where it may be either."""
    return device_of(
        gpu.name, gpu.memory_gib, gpu.capability, {planned.name: planned} | DEVICES | {planned.name: planned}
    )


def _numbered(problems_of_each: Iterable[Iterable[Problem]]) -> Iterator[Problem]:
    """The problems of each GPU, named by its number; one for all GPUs of which the same is to be said."""
    of: dict[Problem, list[str]] = {}
    for index, problems in enumerate(problems_of_each):
        for problem in problems:
            of.setdefault(problem, []).append(str(index))
    for problem, indices in of.items():
        yield replace(problem, field=f"GPU{'s' if len(indices) > 1 else ''} {', '.join(indices)}")


def _unusable(field: str, value: str, message: str) -> Problem:
    remedy = "Look at the kernel's log of the node (Xid), and take the node out if its GPU or driver is broken."
    return Problem.coded("gpu-unusable", field, value, f"{_line(message)}.", remedy)


def _line(words: str) -> str:
    return " ".join(words.split()).rstrip(".")


def _cut_down(request: NodeRequest, found: PodReading) -> Iterator[Problem]:
    if found.cpus < _EXACT * request.cpus:
        value, message = f"{found.cpus:g}", f"{request.cpus} planned."
        yield Problem.coded("pod-cut-down", "CPUs", value, message, _CUT.format(what="cpu"))
    if found.memory_gib is not None and found.memory_gib < _EXACT * request.memory_gib:
        value, message = f"{found.memory_gib:.1f} GiB", f"{request.memory_gib} GiB planned."
        yield Problem.coded("pod-cut-down", "memory", value, message, _CUT.format(what="memory"))
    if found.shared_memory_gib < _EXACT * request.shared_memory_gib:
        value, message = f"{found.shared_memory_gib:.2f} GiB", f"{request.shared_memory_gib} GiB planned."
        remedy = (
            "The volume of the pod template is missing, and Kubernetes gives 0.06 GiB without it; or the pod's memory "
            "was cut down."
        )
        yield Problem.coded("pod-shared-memory", "/dev/shm", value, message, remedy)  # noqa: S108 - a name


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

"""What the tasks ask for that hold a model and need no GPU: fetching, merging and publishing."""

import math
from dataclasses import dataclass

from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.models import saving
from thriftune.models.source import is_gguf
from thriftune.training_plan import TrainingPlan

_GIB = 2**30
_HALF, _FULL = 2, 4  # bytes per parameter
# Python and its libraries, and the buffers of a transfer.
_LIBRARIES_GIB = 4
# A layer is merged in fp32, beside the one that it replaces; the largest, the output head, is computed with in fp32.
_MERGING = 1.2
# A GGUF file is unpacked into 16 bits, tensor by tensor through fp32, and saved from there.
_UNPACKING = 1.15
_MERGING_CPUS = 4


@dataclass(frozen=True)
class PodRequest:
    """What a pod asks for.

    Attributes:
        memory_gib: Memory.
        disk_gib: Disk for the models that it holds.
        cpus: CPUs; 0 for what the platform gives every task.
    """

    memory_gib: int
    disk_gib: int
    cpus: int = 0


def fetching(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Downloading a base model and uploading it again. Files go through, so memory does not grow with the model.

    Args:
        config: The run.
        plan: Its plan, which knows the size of the model.

    Returns:
        The request. For a base model in 16 bits; one of 32 bits needs as much disk again.
    """
    model = _HALF * plan.parameters
    if is_gguf(config.model.source):  # the file is at most as large as what is made of it
        return PodRequest(_LIBRARIES_GIB + _gib(_UNPACKING * model), _gib(2 * model))
    return PodRequest(_LIBRARIES_GIB, _gib(model))


def merging(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Adding an adapter to its base model, which is held whole.

    Args:
        config: The run.
        plan: Its plan.

    Returns:
        The request: 20 GiB of memory for a 7B model in 16 bits, 159 for 70B.
    """
    merged = saving.bytes_at_most(config) * plan.parameters
    disk = _HALF * plan.parameters + merged + _FULL * plan.trained_parameters
    return PodRequest(_LIBRARIES_GIB + _gib(_MERGING * merged), _gib(disk), _MERGING_CPUS)


def publishing(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Pushing a result to the hub: the model, or an adapter that was not merged.

    Args:
        config: The run.
        plan: Its plan.

    Returns:
        The request.
    """
    is_adapter = not METHODS[config.method].trains_weights and not config.lora_or_default.merge
    size = _FULL * plan.trained_parameters if is_adapter else saving.bytes_at_most(config) * plan.parameters
    return PodRequest(_LIBRARIES_GIB, _gib(size))


def _gib(count: float) -> int:
    return math.ceil(count / _GIB)

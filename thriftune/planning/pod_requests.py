"""Resources of the tasks that hold a model and need no GPU: fetching, merging and publishing."""

import math
from dataclasses import dataclass

from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.models import saving
from thriftune.models.exporting.exports import EXPORTS
from thriftune.models.source import is_gguf
from thriftune.stores import transfer
from thriftune.training_plan import TrainingPlan

_GIB = 2**30
_HALF, _FULL = 2, 4  # bytes per parameter
# Memory of Python and its libraries, with room for more: tests/test_task_memory.py measures half a GiB.
_PROCESS_GIB = 3
_LIBRARIES_GIB = _PROCESS_GIB + math.ceil(transfer.MEMORY_GIB)
# Factor: a GGUF file is unpacked to 16 bits, tensor by tensor through fp32, and saved from there.
_UNPACKING = 1.15
# Factor: what bitsandbytes makes of a layer, beside the layer.
_BESIDE_WRITTEN = 1.2
_MERGING_CPUS = 4
# Factor: a model is held in 16 bits, and the largest layer computes in 32; beside it are the reference's probabilities
# (thriftune.inference.parity.reference).
_COMPARING, _BESIDE_COMPARED = 1.25, 3 << 29
# Most memory that is asked for only to run exports: 20 billion parameters in 16 bits.
_MOST_COMPARED = 48 * _GIB


@dataclass(frozen=True)
class PodRequest:
    """The resources that a pod asks for.

    Attributes:
        memory_gib: Memory, in GiB.
        disk_gib: Disk for the models that it holds, in GiB.
        cpus: Number of CPUs; 0 for what the platform gives every task.
    """

    memory_gib: int
    disk_gib: int
    cpus: int = 0


def fetching(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Resources to download a base model and upload it again: memory does not grow with its files or their number.

    Args:
        config: The run.
        plan: Its plan, which knows the size of the model.

    Returns:
        The request, for a base model in 16 bits; one in 32 bits needs twice the disk.
    """
    return fetching_model(config.model.source, plan.parameters)


def fetching_model(source: str, parameters: int) -> PodRequest:
    """Resources to download a base model and upload it again.

    Args:
        source: Where it is.
        parameters: Number of its parameters.

    Returns:
        As `fetching`.
    """
    model = _HALF * parameters
    if is_gguf(source):  # the file is at most as large as the model unpacked from it
        return PodRequest(_LIBRARIES_GIB + _gib(_UNPACKING * model), _gib(2 * model))
    return PodRequest(_LIBRARIES_GIB, _gib(model))


def merging(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Resources to merge an adapter into its base model (`thriftune.planning.merging`).

    Args:
        config: The run.
        plan: Its plan.

    Returns:
        The request: 7 GiB of memory for a 7B model, 10 for 70B.
    """
    merged = saving.bytes_at_most(config) * plan.parameters
    disk = _HALF * plan.parameters + merged + _FULL * plan.trained_parameters
    return PodRequest(_LIBRARIES_GIB + math.ceil(plan.merging_gib), _gib(disk), _MERGING_CPUS)


def publishing(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Resources to push a result to the hub: the model, or an adapter that was not merged.

    Args:
        config: The run.
        plan: Its plan.

    Returns:
        The request.
    """
    is_adapter = not METHODS[config.method].trains_weights and not config.merges
    size = _FULL * plan.trained_parameters if is_adapter else saving.bytes_at_most(config) * plan.parameters
    return PodRequest(_LIBRARIES_GIB, _gib(size))


def exporting(config: RunConfig, plan: TrainingPlan) -> PodRequest:
    """Resources to export a result and compare each export with it.

    Writing is done in parts, but for bitsandbytes', which holds the model. Comparing holds a model too, up to a limit:
    what is larger is compared weight by weight.

    Args:
        config: The run, with a section `export`.
        plan: Its plan.

    Returns:
        The request.
    """
    assert config.export is not None
    formats = [EXPORTS[name] for name in config.export.formats]
    compared = min(_COMPARING * _HALF * plan.parameters + _BESIDE_COMPARED, _MOST_COMPARED)
    written = _BESIDE_WRITTEN * max(kind.held_bytes for kind in formats) * plan.parameters
    memory = max(compared, written, config.export.shard_gb * 1e9)
    stored = saving.bytes_at_most(config) * plan.parameters
    disk = stored + sum(kind.bytes_per_weight for kind in formats) * plan.parameters
    return PodRequest(_LIBRARIES_GIB + _gib(memory), _gib(disk), _MERGING_CPUS)


def _gib(count: float) -> int:
    return math.ceil(count / _GIB)

"""The items of memory, by name, and the moments at which they are there."""

from thriftune.strategies.memory.activations import Peaks

# Bytes by item, by the moment of a training.
Phases = dict[str, dict[str, int]]
FORWARD_BACKWARD = "forward and backward"
STEP = "optimizer step"
WEIGHTS = "weights"
GRADIENTS = "gradients"
STATES = "optimizer states"
STEP_BUFFERS = "optimizer's working memory"
ACTIVATIONS = "activations"
AUTOCAST_COPIES = "copies in 16 bits"
KEPT = "freed, kept by malloc"
# Share of large freed blocks that stays with a process on a CPU; fitted, see `kept_by_malloc`.
_HOLES = 0.3


def kept_by_malloc(activations: Peaks) -> int:
    """What a process on a CPU keeps of freed activations: small blocks, and holes among the large ones.

    Source: fitted to the measured runs; nothing of the kind exists on a GPU, where torch has an allocator of its own.
    """
    return activations.small + int(_HOLES * (activations.all - activations.small))

"""Names of the items of memory, and of the moments of a training at which they are held."""

from thriftune.strategies.memory.activations import Peaks

# Bytes by item, for each moment of a training.
Phases = dict[str, dict[str, int]]
SHARING = "start on all devices"
FORWARD_BACKWARD = "forward and backward"
STEP = "optimizer step"
WEIGHTS = "weights"
CONSTANTS = "constants of the 4-bit weights"
GRADIENTS = "gradients"
STATES = "optimizer states"
BUCKETS = "gradient buckets"
STEP_BUFFERS = "optimizer's working memory"
ACTIVATIONS = "activations"
AUTOCAST_COPIES = "copies in 16 bits"
SENT = "copies being sent"
KEPT = "freed, kept by malloc"
# Share of large freed blocks that a process on a CPU keeps; fitted, see `kept_by_malloc`.
_HOLES = 0.3


def kept_by_malloc(activations: Peaks) -> int:
    """What a process on a CPU keeps of freed activations: small blocks, and holes among the large ones.

    Source: fitted to the measured runs. On a GPU there is no such thing: torch has its own allocator there.
    """
    return activations.small + int(_HOLES * (activations.all - activations.small))

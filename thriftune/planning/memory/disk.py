"""What a node's disk holds while it trains: models, what ZeRO offloads to NVMe, and checkpoints on their way out."""

from thriftune.models.architecture import Architecture

MODELS = "models"
OFFLOADED = "offloaded"
CHECKPOINTS = "checkpoints"

# The newest whole one, the one that is uploaded, the one that waits and the one that is written: see
# `thriftune.checkpoints.saving.BackgroundSaver`. Before that, and gone by then: one that is restored; and for other
# ranks it in pieces, it joined, and one rank's part again: see `thriftune.strategies.zero.universal`.
CHECKPOINTS_AT_ONCE = 4
_HALF = 2  # bytes of a weight in 16 bits


def disk(architecture: Architecture, *, result: int, offloaded: int, checkpoint: int) -> dict[str, int]:
    """Bytes of a node's disk by item.

    Args:
        architecture: The model: the base in 16 bits.
        result: Bytes of the trained model; 0 for an adapter.
        offloaded: Bytes that ZeRO keeps on the node's NVMe.
        checkpoint: Bytes of one checkpoint on this node.
    """
    models = _HALF * architecture.parameters + result
    items = {MODELS: models, OFFLOADED: offloaded, CHECKPOINTS: CHECKPOINTS_AT_ONCE * checkpoint}
    return {item: count for item, count in items.items() if count}

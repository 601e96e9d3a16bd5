"""Disk of a node while it trains: models, what ZeRO offloads to NVMe, and checkpoints that are being uploaded."""

from thriftune.models.architecture import Architecture

MODELS = "models"
OFFLOADED = "offloaded"
CHECKPOINTS = "checkpoints"

# The newest complete checkpoint, one being uploaded, one waiting and one being written: see
# `thriftune.checkpoints.saving.BackgroundSaver`. Before that there may be a restored one, which
# is removed by then; converted for other ranks it is there in pieces, joined, and one rank's part once more: see
# `thriftune.strategies.zero.universal`.
CHECKPOINTS_AT_ONCE = 4
_HALF = 2  # bytes of a weight in 16 bits


def disk(architecture: Architecture, *, result: int, offloaded: int, checkpoint: int) -> dict[str, int]:
    """Bytes on a node's disk, by item.

    Args:
        architecture: The base model, which is on the disk in 16 bits.
        result: Bytes of the trained model; 0 for an adapter.
        offloaded: Bytes that ZeRO keeps on the node's NVMe.
        checkpoint: Bytes of one checkpoint on this node.
    """
    models = _HALF * architecture.parameters + result
    items = {MODELS: models, OFFLOADED: offloaded, CHECKPOINTS: CHECKPOINTS_AT_ONCE * checkpoint}
    return {item: count for item, count in items.items() if count}

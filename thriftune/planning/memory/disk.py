"""What a node's disk holds while it trains: models, what ZeRO offloads to NVMe, and checkpoints on their way out."""

from thriftune.models.architecture import Architecture

MODELS = "models"
OFFLOADED = "offloaded"
CHECKPOINTS = "checkpoints"

# The newest whole one, the one that is uploaded, the one that waits and the one that is written: see
# `thriftune.checkpoints.saving.BackgroundSaver`. Before that, and gone by then: one that is restored; and for other
# ranks it in pieces, it joined, and one rank's part again: see `thriftune.strategies.zero.universal`.
CHECKPOINTS_AT_ONCE = 4
_FP32, _MOMENTS, _HALF = 4, 8, 2


def checkpoint_bytes(trained: int, *, is_full: bool, precision: str, stage: int, nodes: int) -> int:
    """The part of one checkpoint that the fullest node, the first, writes.

    Args:
        trained: Parameters that train: the model's, or the adapter's.
        is_full: Whether DeepSpeed writes it.
        precision: fp32, fp16 or bf16.
        stage: ZeRO stage; 0 too where DeepSpeed does not write it.
        nodes: Machines.

    Returns:
        Bytes: 12 per parameter for fp32 weights and AdamW's moments, spread over the nodes from ZeRO stage 1 on. Below
        stage 3 the first node writes the weights that are computed with besides.

    Source:
        Sizes of files that DeepSpeed 0.19 wrote; see tests/memory/test_disk.py.
    """
    states = (_FP32 + _MOMENTS) * trained
    if not is_full or stage == 3:
        return states // nodes
    weights = (_FP32 if precision == "fp32" else _HALF) * trained
    if stage == 0:  # in fp32 the weights are those that AdamW steps
        return states if precision == "fp32" else states + weights
    return states // nodes + weights


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

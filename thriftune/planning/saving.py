"""How long it takes until a checkpoint is in the store: what the node with the most writes and uploads."""

from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

# Bytes per second at which what trains is written to the node's disk: 4.3 GiB took 7.9 s under ZeRO-3 on an H100
# (docs/resilience.md). And the share of a network's rate that an upload to an object store keeps up: an assumption.
_WRITTEN_PER_SECOND = 0.58e9
_EFFICIENCY = 0.5
_GIGABIT_BYTES = 1e9 / 8


def checkpoint_bytes(plan: TrainingPlan) -> int:
    """Bytes of a checkpoint that the node with the most uploads: weights, and AdamW's two moments.

    Args:
        plan: The plan.
    """
    strategy = STRATEGIES[plan.strategy]
    return strategy.checkpoint_bytes(plan.trained_parameters, plan.precision, plan.settings, plan.nodes)


def write_seconds(size: int) -> float:
    """Seconds that writing it to the node's disk takes.

    Args:
        size: Bytes.
    """
    return size / _WRITTEN_PER_SECOND


def upload_seconds(size: int, network_gbps: float) -> float:
    """Seconds that an upload takes.

    Args:
        size: Bytes.
        network_gbps: The node's sustained network rate, in Gbit/s; half of it is assumed to be used.
    """
    return size / (network_gbps * _GIGABIT_BYTES * _EFFICIENCY)

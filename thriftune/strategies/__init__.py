"""WHERE weights lie and which processes there are: one module or folder for each strategy, and the table STRATEGIES."""

from thriftune.config import RunConfig
from thriftune.config.choices import strategies_of
from thriftune.strategies.base import Machines, Needs, StateFiles, Strategy
from thriftune.strategies.ddp import Ddp
from thriftune.strategies.fsdp.strategy import Fsdp
from thriftune.strategies.layers import Layers
from thriftune.strategies.single import Single
from thriftune.strategies.zero.strategy import Zero

__all__ = ["STRATEGIES", "Machines", "Needs", "StateFiles", "Strategy", "candidates"]

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (Zero(), Fsdp(), Ddp(), Single(), Layers())}


def candidates(config: RunConfig) -> list[Strategy]:
    """The strategies that a run may use, in the order in which the planner tries them.

    Args:
        config: The run.
    """
    return [STRATEGIES[name] for name in strategies_of(config)]

"""How much memory a run needs, from its configuration and the model's config.json alone."""

from thriftune.planning.memory.activations import Pass
from thriftune.planning.memory.estimate import Machines, estimate
from thriftune.planning.memory.evaluating import evaluation_gib

__all__ = ["Machines", "Pass", "estimate", "evaluation_gib"]

"""How much memory a run needs, from its configuration and the model's config.json alone."""

from thriftune.memory.activations import Pass
from thriftune.memory.estimate import Estimate, Machines, estimate
from thriftune.memory.evaluating import evaluation_gib

__all__ = ["Estimate", "Machines", "Pass", "estimate", "evaluation_gib"]

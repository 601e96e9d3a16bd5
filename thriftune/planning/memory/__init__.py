"""The memory that a run needs, from its configuration and the model's config.json alone."""

from thriftune.planning.memory.estimate import estimate

__all__ = ["estimate"]

"""Errors that only checkpoints have."""

from thriftune.errors import TransientError, UserError


class IncompleteError(TransientError):
    """A checkpoint never became complete: this node uploaded its part, but another node did not."""


class NoProgressError(UserError):
    """Two attempts in a row left no new checkpoint: another one would not either."""

    headline = "The training makes no progress"
    code = "training-no-progress"


class LeaseError(UserError):
    """Another training writes, or has begun to write, where this one keeps its checkpoints."""

    headline = "The checkpoints belong to another training"
    code = "checkpoints-in-use"

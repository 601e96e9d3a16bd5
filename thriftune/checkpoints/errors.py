"""Errors that only checkpoints have."""

from thriftune.errors import TransientError


class IncompleteError(TransientError):
    """A checkpoint never became complete: this node uploaded its part, but another node did not."""

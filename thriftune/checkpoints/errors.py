"""Errors that only checkpoints have."""

from thriftune.errors import TransientError


class IncompleteError(TransientError):
    """This node did its part of a checkpoint that never became whole: another node did not do its own."""

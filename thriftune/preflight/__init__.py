"""Everything about a run that can be known without a GPU, found together and before one is asked for."""

from thriftune.preflight.checking import run
from thriftune.preflight.findings import Facts, Preflight, PreflightError
from thriftune.preflight.platform import SecretState

__all__ = ["Facts", "Preflight", "PreflightError", "SecretState", "run"]

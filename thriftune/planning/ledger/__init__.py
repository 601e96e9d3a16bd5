"""The ledger: what runs were planned to take and what they took, and how it corrects the next plan."""

from thriftune.planning.ledger.correcting import FROM_DATASHEETS, Correction, correct
from thriftune.planning.ledger.experience import Evidence, Experience
from thriftune.planning.ledger.keeping import read, write
from thriftune.planning.ledger.record import Quantities, Quantity, Record, Setup, Trial, run_key

__all__ = [
    "FROM_DATASHEETS", "Correction", "Evidence", "Experience", "Quantities", "Quantity", "Record", "Setup", "Trial",
    "correct", "read", "run_key", "write",
]  # fmt: skip

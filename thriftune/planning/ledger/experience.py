"""The ledger as the search of a plan asks it: of each way to run, and often."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from thriftune.planning.ledger.correcting import Correction, correct
from thriftune.planning.ledger.record import Quantity, Record, Setup, Trial

# Errors are rounded outwards to this, so that ways to run that differ little are corrected once.
_STEPS = 100


@dataclass(frozen=True)
class Experience:
    """What earlier runs say, kept by what was asked.

    Attributes:
        records: The records of the ledger.
    """

    records: tuple[Record, ...] = ()
    _of_device: dict[str, list[Record]] = field(default_factory=dict, compare=False, repr=False)
    _found: dict[tuple[str, Quantity, float, float], Correction] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Experience":
        """What some records say.

        Args:
            records: The records, in any order.
        """
        return cls(tuple(records))

    def correction(self, setup: Setup, quantity: Quantity, error: tuple[float, float]) -> Correction:
        """As `correct`, with an error that may be a little wider.

        Args:
            setup: What the planned run trains on and how.
            quantity: What is planned.
            error: The plan's own error.
        """
        wide = math.floor(_STEPS * error[0]) / _STEPS, math.ceil(_STEPS * error[1]) / _STEPS
        key = (repr(setup), quantity, *wide)
        if key not in self._found:
            self._found[key] = correct(self._on(setup.device), setup, quantity, wide)
        return self._found[key]

    def trial(self, setup: Setup, tried: Trial) -> Record | None:
        """The newest calibration of exactly a plan, with the same software; None if there is none.

        Args:
            setup: What the planned run trains on and how.
            tried: What is planned; whether memory ran out does not matter.
        """
        same = [r for r in self._on(setup.device) if r.trial and _without_outcome(r.trial) == _without_outcome(tried)]
        return max((r for r in same if r.setup == setup), key=lambda record: record.when, default=None)

    def _on(self, device: str) -> list[Record]:
        if device not in self._of_device:
            self._of_device[device] = [record for record in self.records if record.setup.device == device]
        return self._of_device[device]


def _without_outcome(trial: Trial) -> tuple[str, str, int, int]:
    return trial.run, trial.settings, trial.micro_batch, trial.accumulation


@dataclass(frozen=True)
class Evidence:
    """What earlier runs say of one way to run.

    Attributes:
        experience: The ledger.
        setup: What is planned.
        tried: The same as a calibration would try it.
    """

    experience: Experience
    setup: Setup
    tried: Trial

    def correction(self, quantity: Quantity, error: tuple[float, float]) -> Correction:
        """A correction of a planned quantity.

        Args:
            quantity: What is planned.
            error: The plan's own error.
        """
        return self.experience.correction(self.setup, quantity, error)

    def trial(self) -> Record | None:
        """The newest calibration of exactly this; None if there is none."""
        return self.experience.trial(self.setup, self.tried)

"""GPU-hours of a training: planned, used, and of those lost to faults and to waiting."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class GpuHours:
    """GPU-hours of a training, over all its attempts. On a CPU a worker process is a device.

    Attributes:
        used: Hours that its attempts held devices, each times the number of devices.
        faults: Of these, in attempts that left nothing, in steps that were done again, and until processes that failed
            were started again.
        starting: Of these, until the first step: fetching, loading, the first validation. Not of attempts that left
            nothing.
        layers: Of these, in which a device waited for those that have other layers.
        between: Hours between two attempts times the number of devices. The run waited for nodes and held none: they
            are not in `used`.
        planned: What the plan said of `used`; None where it did not know.
    """

    used: float
    faults: float = 0.0
    starting: float = 0.0
    layers: float = 0.0
    between: float = 0.0
    planned: float | None = None

    @property
    def waiting(self) -> float:
        """Hours that were lost to waiting: for the start, for other layers, and between attempts."""
        return self.starting + self.layers + self.between

    @property
    def working(self) -> float:
        """Hours that devices computed what is in the result, or saved and validated it."""
        return self.used - self.faults - self.starting - self.layers

    @classmethod
    def total(cls, hours: Iterable[Self]) -> Self:
        """The sum of several trainings; planned only if all were.

        Args:
            hours: Their hours.
        """
        found = list(hours)
        planned = [each.planned for each in found if each.planned is not None]
        return cls(
            used=sum(each.used for each in found),
            faults=sum(each.faults for each in found),
            starting=sum(each.starting for each in found),
            layers=sum(each.layers for each in found),
            between=sum(each.between for each in found),
            planned=sum(planned) if found and len(planned) == len(found) else None,
        )

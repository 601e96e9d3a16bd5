"""What this pod really has: GPUs, driver, CPUs, memory, /dev/shm. Read once, before anything is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from thriftune import container
from thriftune.gpu_readings import Driver, Gpu, Trial, has_driver_files, read_driver, try_gpus


@dataclass(frozen=True)
class PodReading:
    """What a pod has.

    Attributes:
        driver: The GPUs as the driver shows them.
        trial: The same as torch can use them; None if there was nothing to try.
        cpus: CPUs that it may use, in whole or in part.
        memory_gib: Limit of its memory, in GiB; None for none.
        shared_memory_gib: Size of /dev/shm, in GiB; 0 if there is none.
        variables: Environment variables that show or hide GPUs, as far as they are set.
    """

    driver: Driver
    trial: Trial | None
    cpus: float
    memory_gib: float | None
    shared_memory_gib: float
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs: those that torch can see, else those that the driver shows."""
        return (self.trial.gpus if self.trial else ()) or self.driver.gpus


def read_pod(variables: Mapping[str, str]) -> PodReading:
    """Read all of it; torch is tried last, as it takes memory of the GPUs while it runs.

    Args:
        variables: Environment variables that show or hide GPUs, as far as they are set.
    """
    driver = read_driver()
    limited, shared = container.memory_fill(), container.shared_memory_fill()
    return PodReading(
        driver=driver,
        trial=try_gpus() if driver.gpus or has_driver_files() else None,
        cpus=container.cpus(),
        memory_gib=limited.size if limited else None,
        shared_memory_gib=shared.size if shared else 0.0,
        variables=variables,
    )

"""What the search tries, and what comes of it: ways to run on machines, those that fit, and those that do not."""

from dataclasses import dataclass

from thriftune.batching import Batch
from thriftune.hardware import Precision
from thriftune.planning.offers import Offer
from thriftune.strategies import Strategy
from thriftune.training_plan import Estimate, RunTime, SpotTime, Verdict


@dataclass(frozen=True)
class Choice:
    """One way to run.

    Attributes:
        offer: The kind of machine.
        nodes: Number of machines.
        devices_per_node: GPUs of each machine, or worker processes on a CPU.
        strategy: The strategy.
        settings: Settings of the strategy, as JSON text.
        settings_name: A name to show for them; empty where there is none.
        batch: The batch, with micro batch and accumulation.
        precision: Precision of the matrix products.
        validation_batch: Rows per rank in one forward pass of a validation.
    """

    offer: Offer
    nodes: int
    devices_per_node: int
    strategy: Strategy
    settings: str
    settings_name: str
    batch: Batch
    precision: Precision
    validation_batch: int = 1

    @property
    def price_per_hour(self) -> float:
        """Price of all nodes per hour."""
        return self.nodes * self.offer.price_per_hour

    @property
    def share(self) -> float:
        """Share of a node that the pod takes: the GPUs it uses, out of all of them."""
        return self.devices_per_node / self.offer.gpus if self.offer.gpus else 1.0

    @property
    def host_limit_gib(self) -> float:
        """Host memory that the pod can have, in GiB."""
        return self.offer.host_gib * self.share

    @property
    def device_limit_gib(self) -> float:
        """Memory of a GPU, or a worker process's part of the host memory on a CPU; in GiB."""
        if self.offer.device.is_gpu:
            return self.offer.gpu_gib
        return self.offer.host_gib / self.devices_per_node

    @property
    def machines(self) -> str:
        """The machines, as text."""
        return f"{self.nodes} x {self.offer.name}"


@dataclass(frozen=True)
class Way:
    """A strategy with settings.

    Attributes:
        strategy: The strategy.
        settings: Settings of the strategy, as JSON text.
        settings_name: A name to show for them.
    """

    strategy: Strategy
    settings: str
    settings_name: str


@dataclass(frozen=True)
class Fitting:
    """A choice that fits, or that may fit.

    Attributes:
        choice: The choice.
        memory: The memory it needs.
        time: The time it takes; None where that is not known.
        spot: What it is expected to take on spot nodes; None elsewhere, and where that is not known.
    """

    choice: Choice
    memory: Estimate
    time: RunTime | None = None
    spot: SpotTime | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        assert self.memory.verdict is not None
        return self.memory.verdict

    @property
    def cost(self) -> float | None:
        """Price of the whole run; None where its time is not known."""
        if self.time is None:
            return None
        return self.spot.cost if self.spot else self.choice.price_per_hour * self.time.hours

    @property
    def hours(self) -> float | None:
        """Hours that its nodes run; None where its time is not known."""
        if self.time is None:
            return None
        return self.spot.billed_hours if self.spot else self.time.hours

    @property
    def is_sure(self) -> bool:
        """Whether it fits even if it needs the most that it may need."""
        return self.verdict.answer == "fits"


@dataclass(frozen=True)
class Refusal:
    """A choice that does not fit.

    Attributes:
        machines: The machines, as text.
        choice: What was tried; None if the machines were refused before anything could be tried.
        reason: Why it does not fit, as a clause.
        excess: How far it is from fitting: what it needs divided by what there is; infinite where there is no number.
        has_room: Whether memory is enough: it takes too long, costs too much, or would not end.
        remedy: What to do about that, as a sentence; empty where memory is not enough.
    """

    machines: str
    choice: Choice | None
    reason: str
    excess: float
    has_room: bool = False
    remedy: str = ""

"""The training plan: what a run trains on and how. The planner makes it, and every later task follows it."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Literal

from thriftune.batching import Batch
from thriftune.hardware import Device, Precision
from thriftune.overhead import OVERHEAD
from thriftune.planned_node import EvaluationNode, NodeRequest

# Hours and cost are those of so many steps where it is not known how many a run has.
ASSUMED_STEPS = 1000

Answer = Literal["fits", "uncertain", "does not fit"]


@dataclass(frozen=True)
class Verdict:
    """Whether a run fits, as far as an estimate can say.

    Attributes:
        answer: It fits even if it needs the most that it may need; only if it needs less; or not even with the least.
        where: What is nearest to its limit, or furthest beyond: each GPU or worker, the host, or the local disk.
        low_gib: The least GiB that may be needed there.
        high_gib: The most GiB that may be needed there.
        limit_gib: GiB that there are.
        settles: What would settle an uncertain answer, as a clause; empty for the others.
        leans_on: The runs that corrected what was computed, as text; empty if none did.
    """

    answer: Answer
    where: str
    low_gib: float
    high_gib: float
    limit_gib: float
    settles: str = ""
    leans_on: str = ""

    @property
    def share(self) -> float:
        """The most that may be needed, as a share of what there is; above 1 where it may be too much."""
        return self.high_gib / self.limit_gib


@dataclass(frozen=True)
class Estimate:
    """Memory that a run needs.

    Attributes:
        phase: When the devices need the most memory: forward and backward, or optimizer step.
        devices: GiB by item, for each device of a node. On a CPU a device is a worker process.
        host_phase: When the host needs the most memory: training, or saving.
        host: GiB of one host by item.
        training_host_gib: GiB of one host while it trains; saving may need more.
        shared_memory_gib: GiB of the host's memory that must fit /dev/shm.
        disk: GiB of a node's local disk by item.
        verdict: Whether it fits the machines that it was made for; None where it was made for none.
    """

    phase: str
    devices: list[dict[str, float]]
    host_phase: str
    host: dict[str, float]
    training_host_gib: float
    shared_memory_gib: float
    disk: dict[str, float]
    verdict: Verdict | None = None

    @property
    def device(self) -> dict[str, float]:
        """The items of the fullest device."""
        return max(self.devices, key=lambda items: sum(items.values()))

    @property
    def device_gib(self) -> float:
        """GiB of the fullest device."""
        return sum(self.device.values())

    @property
    def allocated_gib(self) -> float:
        """GiB of the fullest device as `torch.cuda.max_memory_allocated` counts them."""
        return sum(gib for item, gib in self.device.items() if item not in OVERHEAD)

    @property
    def host_gib(self) -> float:
        """GiB of one host."""
        return sum(self.host.values())

    @property
    def disk_gib(self) -> float:
        """GiB of a node's local disk."""
        return sum(self.disk.values())


@dataclass(frozen=True)
class StepTime:
    """Time of one optimizer step.

    Attributes:
        parts: Seconds by what the devices do, such as matrix products or exchange between devices.
        waiting: Share of the devices that wait at any time, because one computes after the other; from 0 to 1.
    """

    parts: dict[str, float]
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RunTime:
    """How long a run takes, and what it costs.

    Attributes:
        step: One optimizer step.
        error: Factors of the time of a step between which the truth is 90 % likely.
        correction: Factor by which runs of the ledger changed the time of a step; 1 without any.
        tokens_per_step: Tokens of one step, without padding.
        tokens_from: Where their number comes from, as text.
        leans_on: Where the speed comes from, as text.
        steps: Optimizer steps; 0 where the number of rows is not known, and hours are those of `ASSUMED_STEPS`.
        beside: Seconds by what is done once: start, loading, validations, checkpoints.
        full_seconds: Seconds of a step whose rows are all as long as the run allows, as a calibration has them.
    """

    step: StepTime
    error: tuple[float, ...]  # of two; Flyte's clients cannot read the schema of a tuple of fixed length
    correction: float
    tokens_per_step: float
    tokens_from: str
    leans_on: str
    steps: int
    beside: dict[str, float]
    full_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices in a second of training."""
        return self.tokens_per_step / self.step.seconds

    @property
    def hours(self) -> float:
        """Hours of the GPUs' nodes, from their start to the result."""
        return self._hours(1.0)

    @property
    def hours_low(self) -> float:
        """Hours if steps take as little time as they may."""
        return self._hours(self.error[0])

    @property
    def hours_high(self) -> float:
        """Hours if steps take as much time as they may."""
        return self._hours(self.error[1])

    def _hours(self, factor: float) -> float:
        steps = self.steps or ASSUMED_STEPS
        return (factor * steps * self.step.seconds + sum(self.beside.values())) / 3600


@dataclass(frozen=True)
class SpotTime:
    """What a run is expected to take on spot nodes, on average over many such runs.

    Attributes:
        billed_hours: Hours that its nodes run, with what is done again after interruptions.
        interruptions: Number of interruptions.
        cost: Price of the billed hours.
        every_minutes: Minutes of training between two checkpoints that this counts with.
        best_minutes: Those with which it would cost least.
        best_cost: What it would cost then.
        saving_seconds: Seconds to write and upload a checkpoint.
        saved_gib: Its size on the node that saves the most.
        interruptions_per_month: Interruptions of one such node in a month.
        rate_from: Where that is from.
        has_spot_price: Whether prices are of the spot market; else those on demand.
    """

    billed_hours: float
    interruptions: float
    cost: float
    every_minutes: float
    best_minutes: float
    best_cost: float
    saving_seconds: float
    saved_gib: float
    interruptions_per_month: float
    rate_from: str
    has_spot_price: bool


@dataclass(frozen=True)
class Alternative:
    """Another plan that fits.

    Attributes:
        instance: Node type.
        nodes: Number of machines.
        devices_per_node: GPUs of each machine.
        strategy: How weights are placed on devices.
        settings: The strategy's settings in a word; empty where it has none.
        micro_batch: Rows per rank and forward pass.
        device_gib: GiB of the fullest GPU.
        device_limit_gib: GiB that a GPU has.
        price_per_hour: Price of all nodes.
        time: How long it takes; None where that is not known.
        spot: What it is expected to take on spot nodes; None elsewhere, and where that is not known.
    """

    instance: str
    nodes: int
    devices_per_node: int
    strategy: str
    settings: str
    micro_batch: int
    device_gib: float
    device_limit_gib: float
    price_per_hour: float
    time: RunTime | None = None
    spot: SpotTime | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """What a run trains on, and how.

    Attributes:
        method: What trains: a name in `thriftune.methods.METHODS`.
        strategy: How weights are placed on devices: a name in `thriftune.strategies.STRATEGIES`.
        settings: The strategy's own settings, as JSON text; empty where it has none.
        hardware: The device to train on, with all that is known of it: a catalogue may have devices of its own.
        instance: Node type of the catalogue, or this machine.
        nodes: Number of machines.
        devices_per_node: GPUs per machine (worker processes on CPU).
        precision: fp32, fp16 or bf16.
        global_batch: Rows per optimizer step.
        micro_batch: Rows per rank and forward pass.
        accumulation: Forward passes per optimizer step.
        validation_batch: Rows per rank and forward pass while held-out loss is measured.
        memory: Predicted memory of the run.
        device_limit_gib: GiB of each GPU; on a CPU, GiB of the host's memory that each worker may take.
        host_limit_gib: GiB of the host's memory that a pod can have.
        request: What the pod of each node asks for.
        price_per_hour: Price of all nodes, in `currency`; 0 for this machine.
        currency: Currency of the price.
        prices_as_of: Date and region of the prices; empty for this machine.
        parameters: Number of parameters of the model.
        trained_parameters: Number of parameters that training changes.
        alternatives: The next best plans.
        evaluation: What the result is measured on; None on this machine, or if no node holds it.
        benchmarks: What each shard of the benchmarks runs on; None if the run has none.
        time: How long it takes; None where that is not known.
        is_spot: Whether its nodes are from the spot market, which may take them back at any time.
        spot: What it is expected to take there; None elsewhere, and where that is not known.
        merging_gib: GiB that merging the adapter into the base takes beside libraries; 0 where it cannot be merged.
    """

    method: str
    strategy: str
    settings: str
    hardware: Device
    instance: str
    nodes: int
    devices_per_node: int
    precision: Precision
    global_batch: int
    micro_batch: int
    accumulation: int
    validation_batch: int
    memory: Estimate
    device_limit_gib: float
    host_limit_gib: float
    request: NodeRequest
    price_per_hour: float
    currency: str
    prices_as_of: str
    parameters: int
    trained_parameters: int
    alternatives: list[Alternative]
    evaluation: EvaluationNode | None = None
    benchmarks: EvaluationNode | None = None
    time: RunTime | None = None
    is_spot: bool = False
    spot: SpotTime | None = None
    merging_gib: float = 0.0

    @property
    def fingerprint(self) -> str:
        """A digest of what determines the result of a training: not prices, requests and predictions."""
        decisions = (
            self.method, self.strategy, self.settings, self.device, self.nodes, self.devices_per_node, self.precision,
            self.global_batch, self.micro_batch, self.accumulation,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(decisions).encode()).hexdigest()[:16]

    @property
    def of_evaluation(self) -> "TrainingPlan":
        """The plan with the node that the result is measured on in place of the training's."""
        node = self.evaluation
        if node is None:
            return self
        return replace(
            self,
            instance=node.instance,
            hardware=node.hardware,
            nodes=1,
            devices_per_node=node.devices,
            device_limit_gib=node.gpu_gib,
            precision=node.precision,
            request=node.request,
            price_per_hour=node.price_per_hour,
        )

    @property
    def batch(self) -> Batch:
        """The global batch and how it is cut."""
        ranks = self.global_batch // (self.micro_batch * self.accumulation)
        return Batch(self.global_batch, self.micro_batch, self.accumulation, ranks)

    @property
    def processes_per_node(self) -> int:
        """Training processes per machine, each with rows of its own."""
        return self.batch.world_size // self.nodes

    @property
    def device(self) -> str:
        """Name of the device to train on."""
        return self.hardware.name

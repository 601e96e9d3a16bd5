"""Seconds of one optimizer step: what the model computes, what devices exchange, and the update of the weights."""

from dataclasses import dataclass

from thriftune.devices import Speed
from thriftune.strategies.coordination import Coordination
from thriftune.strategies.memory.work import Work
from thriftune.training_plan import StepTime

PRODUCTS = "matrix products"
MEMORY = "memory traffic"
STARTING = "starting operations"
UPDATE = "optimizer"
EXCHANGE = "exchange between devices"
HOST = "exchange with the host"
HOST_UPDATE = "optimizer on the host"

# Bytes that an update reads and writes for each parameter: gradient, weight and states of AdamW in fp32, some of them
# more than once, as torch updates in several passes; of the 8-bit optimizers, which fuse them. Clipping included.
_UPDATE_BYTES, _UPDATE_BYTES_8_BIT = 64, 24
# Parameters that one CPU updates in a second.
# Source: ZeRO-Offload (arXiv 2101.06840), section 6.2.5: 1e9 parameters in 0.23 s on 40 cores.
_UPDATED_PER_CPU = 1e8
# Seconds of the host's for each weight that DeepSpeed gathers and frees by itself, in Python, while computing goes on.
# Fitted to Qwen's README: ZeRO-3 with rows of 256 tokens, where nothing else takes as long: 7B on 2 A100 4.0 s for 8
# passes, 72B with LoRA on 4 A100 17.6 s.
_VISIT_SECONDS = 0.4e-3
# Collectives between GPUs that have no link of their own pass through host memory, which is written and read.
_THROUGH_HOST = 0.5


@dataclass(frozen=True)
class Links:
    """How fast data moves between the devices of a run, in bytes per second.

    Attributes:
        between: From a device to the next one, over the slowest link of a ring.
        host: Between a device and its host, in one direction.
        cpus: Virtual CPUs for each device.
    """

    between: float
    host: float
    cpus: float


def links(speed: Speed, *, nodes: int, network: float, cpus: float) -> Links:
    """The links of a run.

    Args:
        speed: The device's.
        nodes: Number of nodes.
        network: Bytes per second of a node's network; 0 where it is not known.
        cpus: Virtual CPUs for each device; where a node leaves less than one, as one.
    """
    inside = speed.nvlink or _THROUGH_HOST * speed.pcie
    # A ring over nodes crosses each node's network once.
    return Links(min(inside, network) if nodes > 1 and network else inside, speed.pcie, max(1.0, cpus))


def pass_seconds(work: Work, speed: Speed, *, is_queued: bool, on_host: float = 0.0) -> dict[str, float]:
    """Seconds of some work by part.

    Args:
        work: The work.
        speed: The device's.
        is_queued: Whether operations are started while earlier ones still run, as on a GPU.
        on_host: Seconds that the host needs besides, to start it.
    """
    products, memory = work.products_seconds(speed), work.memory_seconds(speed)
    starting = speed.launch * work.count + on_host
    if is_queued:  # only what the device waits for is lost
        starting = max(0.0, starting - products - memory)
    return {PRODUCTS: products, MEMORY: memory, STARTING: starting}


def of_step(
    work: Work,
    coordination: Coordination,
    speed: Speed,
    links: Links,
    *,
    accumulation: int,
    devices_per_node: int,
    eight_bit: bool = False,
    is_queued: bool = True,
) -> StepTime:
    """Seconds of one optimizer step.

    Args:
        work: What a process computes in one forward and backward pass.
        coordination: What each device does besides.
        speed: The device's.
        links: How fast data moves.
        accumulation: Passes in one optimizer step.
        devices_per_node: Devices of a node.
        eight_bit: Whether the optimizer holds its states in 8 bits.
        is_queued: Whether devices are GPUs, which compute while the host goes on.
    """
    visits = _VISIT_SECONDS * coordination.visits / accumulation
    of_one = pass_seconds(work, speed, is_queued=is_queued, on_host=visits)
    passes = {part: accumulation * seconds for part, seconds in of_one.items()}
    per_parameter = _UPDATE_BYTES_8_BIT if eight_bit else _UPDATE_BYTES
    update = per_parameter * coordination.updated / speed.bandwidth
    on_host = coordination.updated_on_host / (_UPDATED_PER_CPU * links.cpus)
    between, host = _seconds(coordination.between, links.between), _seconds(coordination.host, links.host)
    # On a CPU the same cores exchange and compute.
    overlapped = coordination.overlapped if is_queued else 0.0
    hidden = overlapped * min(between + host, sum(passes.values()))
    shown = 1 - hidden / (between + host) if hidden else 1.0
    parts = {**passes, UPDATE: update, HOST_UPDATE: on_host, EXCHANGE: shown * between, HOST: shown * host}
    waiting = 1 - coordination.at_a_time / devices_per_node if coordination.at_a_time else 0.0
    return StepTime({part: seconds for part, seconds in parts.items() if seconds}, waiting)


def _seconds(count: int, speed: float) -> float:
    return count / speed if count else 0.0

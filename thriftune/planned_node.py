"""A node that a task was planned for: what it is, and what its pod asks for."""

from dataclasses import dataclass
from typing import Protocol

from thriftune.hardware import Device, Precision


@dataclass(frozen=True)
class NodeRequest:
    """What the pod of one node asks for.

    Attributes:
        cpus: Virtual CPUs.
        memory_gib: Host memory in GiB; /dev/shm counts against it.
        shared_memory_gib: Limit of /dev/shm in GiB.
        disk_gib: Local disk in GiB.
        gpus: Number of GPUs; 0 on a CPU.
    """

    cpus: int
    memory_gib: int
    shared_memory_gib: int
    disk_gib: int
    gpus: int


class PlannedNode(Protocol):
    """What a pod needs to know of the node that it was planned for: a plan for a training is one too."""

    @property
    def instance(self) -> str:
        """Node type of the catalogue, or this machine."""

    @property
    def hardware(self) -> Device:
        """The device."""

    @property
    def request(self) -> NodeRequest:
        """What its pod asks for."""

    @property
    def device_limit_gib(self) -> float:
        """GiB of each GPU."""


@dataclass(frozen=True)
class EvaluationNode:
    """What a finished model is measured on.

    Attributes:
        instance: Node type of the catalogue.
        hardware: The device.
        devices: GPUs of it that are used.
        gpu_gib: GiB of each GPU; 0 on a CPU.
        precision: Precision to compute in.
        request: What its pod asks for.
        price_per_hour: Of the node, in the plan's currency.
        is_asked: Whether the run asks to measure its result; else the node answers prompts, if the training comes from
            the cache and was asked others.
        pods: Number of pods that have such a node each, one after the other or at the same time.
        parallel: Most of them at a time.
    """

    instance: str
    hardware: Device
    devices: int
    gpu_gib: float
    precision: Precision
    request: NodeRequest
    price_per_hour: float
    is_asked: bool = True
    pods: int = 1
    parallel: int = 1

    @property
    def device_limit_gib(self) -> float:
        """GiB of each GPU; 0 on a CPU."""
        return self.gpu_gib

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.hardware.name

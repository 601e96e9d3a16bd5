"""What is known of a kind of device: memory, capability, names, speed. The shipped ones are in devices.yaml."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from thriftune.bounded_yaml import BoundedLoader

CPU = "CPU"
# A driver reports a little less than the data sheet: a 16 GB T4 shows 14.6 GiB.
_LEAST_SHOWN = 0.85
_CAPABILITY = re.compile(r"(\d{1,2})\.(\d)")
_LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"


@dataclass(frozen=True)
class Speed:
    """How fast a device computes, as far as training reaches it.

    Attributes:
        fp32: FLOP/s of large matrix products in fp32, without TF32.
        fp16: FLOP/s of large matrix products in fp16; 0 for none.
        bf16: FLOP/s of large matrix products in bf16; 0 for none.
        bandwidth: Bytes/s of its own memory in element-wise operations.
        launch: Seconds that one operation takes at least, on the host and the device together.
        pcie: Bytes/s per direction between the device and its host.
        nvlink: Bytes/s per direction between two devices; 0 without NVLink.
        draw: Seconds to draw a random number, of which dropout needs one for each element; 0 on a GPU, whose memory is
            slower.
    """

    fp32: float
    fp16: float
    bf16: float
    bandwidth: float
    launch: float
    pcie: float
    nvlink: float
    draw: float = 0.0

    def of(self, precision: str) -> float:
        """FLOP/s of large matrix products in a precision.

        Args:
            precision: fp32, fp16 or bf16.
        """
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.bf16}[precision]


@dataclass(frozen=True)
class Device:
    """One kind of device to train on.

    Attributes:
        name: Its name in a run file and a catalogue, or the driver's name for a GPU that is in no table.
        memory_gib: Memory per device; 0 for the CPU, whose memory is the host's.
        compute_capability: NVIDIA's (major, minor); (0, 0) for the CPU.
        bf16_flag: Instructions of a CPU for products in bfloat16; empty where it has none, or this is not known.
        accelerator: By which label value Flyte selects nodes that have it; empty where there is none.
        driver_names: What the driver calls it.
        speed: How fast it computes; None where that is not known: memory is planned then, and time is left open.
    """

    name: str
    memory_gib: int
    compute_capability: tuple[int, ...]  # of two; Flyte's clients cannot read the schema of a tuple of fixed length
    bf16_flag: str = ""
    accelerator: str = ""
    driver_names: tuple[str, ...] = ()
    speed: Speed | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.compute_capability > (0, 0)

    @property
    def has_bf16(self) -> bool:
        """Whether it can train in bfloat16: compute capability 8 and later, and every CPU (slowly without the flag).

        Not torch's own `is_bf16_supported`: it says yes on a T4, because it counts emulation.
        """
        return not self.is_gpu or self.compute_capability >= (8, 0)

    @property
    def backend(self) -> str:
        """The collective backend of torch.distributed."""
        return "nccl" if self.is_gpu else "gloo"

    def is_like(self, memory_gib: float, capability: tuple[int, ...]) -> bool:
        """Whether a GPU has this one's compute capability and memory.

        Args:
            memory_gib: Memory that the driver shows of it, in GiB.
            capability: Its compute capability.
        """
        if not self.is_gpu or self.compute_capability != capability:
            return False
        return _LEAST_SHOWN <= round(memory_gib) / self.memory_gib <= 1


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Peaks(_Entry):
    """Peaks of dense matrix products that the data sheet states, in 10^12 FLOP/s."""

    fp32: float = Field(gt=0, le=10_000, description="10^12 FLOP/s in fp32, without tensor cores.")
    fp16: float = Field(
        default=0.0, ge=0, le=10_000, description="10^12 FLOP/s in fp16, accumulated in fp32, without sparsity."
    )
    bf16: float = Field(
        default=0.0,
        ge=0,
        le=10_000,
        description="10^12 FLOP/s in bf16, without sparsity; only from capability 8.0 on.",
    )


class Reached(_Entry):
    """Shares of the peaks that training reaches, from 0 to 1."""

    fp32: float = Field(default=0.6, gt=0, le=1, description="Share of the products in fp32, above 0 and at most 1.")
    fp16: float = Field(default=0.6, gt=0, le=1, description="Share of the products in fp16, above 0 and at most 1.")
    bf16: float = Field(default=0.6, gt=0, le=1, description="Share of the products in bf16, above 0 and at most 1.")
    memory: float = Field(
        default=0.8, gt=0, le=1, description="Share of the memory's bandwidth, above 0 and at most 1."
    )
    pcie: float = Field(default=0.75, gt=0, le=1, description="Share of PCIe's rate, above 0 and at most 1.")
    nvlink: float = Field(default=0.75, gt=0, le=1, description="Share of NVLink's rate, above 0 and at most 1.")


class SpeedEntry(_Entry):
    """How fast a device computes: what the data sheet states, and what share of it is reached."""

    tflops: Peaks = Field(
        description="Peaks of dense matrix products by precision, in 10^12 FLOP/s: {fp32: 8.1, fp16: 65}."
    )
    bandwidth_gbs: float = Field(ge=1, le=100_000, description="Bandwidth of the device's memory, in GB/s (not TB/s).")
    pcie_gbs: float = Field(
        default=15.75, gt=0, le=1_000, description="GB/s per direction to the host: 15.75 for PCIe 3.0 with 16 lanes."
    )
    nvlink_gbs: float = Field(
        default=0.0, ge=0, le=10_000, description="GB/s per direction between two devices over NVLink; 0 without it."
    )
    launch_us: float = Field(
        default=10.0, gt=0, le=10_000, description="Microseconds that one operation takes at least."
    )
    reached: Reached = Field(default=Reached(), description="Shares of the peaks that training reaches.")

    @property
    def speed(self) -> Speed:
        """The speed that training reaches."""
        peak, share = self.tflops, self.reached
        return Speed(
            fp32=peak.fp32 * 1e12 * share.fp32,
            fp16=peak.fp16 * 1e12 * share.fp16,
            bf16=peak.bf16 * 1e12 * share.bf16,
            bandwidth=self.bandwidth_gbs * 1e9 * share.memory,
            launch=self.launch_us * 1e-6,
            pcie=self.pcie_gbs * 1e9 * share.pcie,
            nvlink=self.nvlink_gbs * 1e9 * share.nvlink,
        )


def _two_numbers(value: Any) -> Any:
    """The numbers of a capability such as 8.6, which YAML reads as a number; anything else as it is."""
    match = _CAPABILITY.fullmatch(str(value)) if isinstance(value, float | str) else None
    if match is None:
        raise contradiction("is no compute capability")
    return int(match[1]), int(match[2])


class DeviceEntry(_Entry):
    """A kind of device: an entry of a section `devices`, without its name, which is given as the context's `name`."""

    compute_capability: Annotated[tuple[int, int], BeforeValidator(_two_numbers)] = Field(
        description="NVIDIA's compute capability with a dot, such as 8.6 or 9.0; 0.0 for the CPU alone."
    )
    memory_gib: NonNegativeInt = Field(
        le=4096,
        description="Memory that the data sheet states, a whole number: 16 for a T4; 0 for the CPU alone.",
    )
    accelerator: str = Field(
        default="", pattern=_LABEL_VALUE, description="Value of the nodes' label by which Flyte selects them."
    )
    driver_names: tuple[str, ...] = Field(
        default=(), description="What the driver calls it (nvidia-smi -L), such as [NVIDIA L40S]."
    )
    speed: SpeedEntry | None = Field(
        default=None, description="How fast it computes; without it memory is planned, and time is left open."
    )

    @field_validator("compute_capability")
    @classmethod
    def _is_of_a_gpu(cls, capability: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        if (capability == (0, 0)) != ((info.context or {}).get("name") == CPU):
            raise contradiction("does not go with this name: 0.0 is the CPU, and a GPU has another one")
        return capability

    @field_validator("memory_gib")
    @classmethod
    def _has_memory(cls, memory: int, info: ValidationInfo) -> int:
        capability = info.data.get("compute_capability")
        if capability and (capability > (0, 0)) != (memory > 0):
            raise contradiction(
                "leaves a GPU without memory" if memory == 0 else "gives the CPU memory besides the host's"
            )
        return memory

    @field_validator("speed")
    @classmethod
    def _computes_in_what_it_has(cls, speed: SpeedEntry | None, info: ValidationInfo) -> SpeedEntry | None:
        capability = info.data.get("compute_capability")
        if speed is None or not capability or capability == (0, 0):
            return speed
        if speed.tflops.fp16 == 0:
            raise contradiction("leaves tflops.fp16 out, in which a GPU trains")
        if (speed.tflops.bf16 > 0) != (capability >= (8, 0)):
            raise contradiction("has tflops.bf16 where a GPU has no bfloat16, or none where it has (from 8.0 on)")
        return speed

    def device(self, name: str) -> Device:
        """The device with this name."""
        return Device(
            name=name,
            memory_gib=self.memory_gib,
            compute_capability=self.compute_capability,
            accelerator=self.accelerator,
            driver_names=self.driver_names,
            speed=self.speed.speed if self.speed else None,
        )

    @classmethod
    def of(cls, name: str, properties: Any) -> Self:
        """Check the properties of a device.

        Args:
            name: Its name.
            properties: A mapping as in devices.yaml.
        """
        return cls.model_validate(properties, context={"name": name})


def contradiction(message: str) -> PydanticCustomError:
    """An error of a validator: a value that cannot be true."""
    return PydanticCustomError("contradiction", "{message}", {"message": message})


def shipped() -> dict[str, Device]:
    """The devices of devices.yaml by name."""
    content = resources.files("thriftune").joinpath("devices.yaml").read_bytes()
    entries = yaml.load(content, BoundedLoader)["devices"]  # noqa: S506 - a SafeLoader
    return {name: DeviceEntry.of(name, properties).device(name) for name, properties in entries.items()}


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant by the name of a device that is not known.

    Args:
        name: The name.
        known: Those that are known.
    """
    by_lower = {each.lower(): each for each in known}
    begins = [each for each in by_lower if each.startswith(name.lower())]
    close = [by_lower[each] for each in begins or difflib.get_close_matches(name.lower(), by_lower, cutoff=0.5)]
    meant = f"Did you mean {' or '.join(close)}?" if close else f"Known are {', '.join(by_lower.values())}."
    return f"{meant} Others can be added to the catalogue (docs/planning.md)."

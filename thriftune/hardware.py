"""The GPUs people can get, and what each one implies: memory, precision, attention, backend.

Sources: NVIDIA's data sheets for memory and compute capability. Which machines carry them:
thriftune/planning/catalogue.yaml.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thriftune.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["T4", "V100", "A10G", "L4", "A100-40GB", "A100-80GB", "H100", "CPU"]
# A driver reports a little less than the data sheet: a 16 GB T4 shows 14.6 GiB.
_LEAST_SHOWN = 0.85
Precision = Literal["fp32", "fp16", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
# Linux's names for the instructions for products in bfloat16, on x86 and on ARM. With them a step takes a quarter of
# the time of a step in fp32; without them, several times as long.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Speed:
    """How fast a device computes and moves data, as far as training reaches it.

    Attributes:
        fp32: FLOP/s that large matrix products reach in fp32.
        fp16: The same in fp16; 0 where it has none.
        bf16: The same in bf16; 0 where it has none.
        bandwidth: Bytes per second of its own memory that element-wise operations reach.
        launch: Seconds that an operation takes at least, for Python and the device to start it.
        pcie: Bytes per second and direction between the device and its host.
        nvlink: Bytes per second and direction between two devices; 0 without such a link.
    """

    fp32: float
    fp16: float
    bf16: float
    bandwidth: float
    launch: float
    pcie: float = 0.0
    nvlink: float = 0.0

    def of(self, precision: Precision) -> float:
        """FLOP/s of large matrix products in a precision.

        Args:
            precision: The precision.
        """
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.bf16}[precision]


@dataclass(frozen=True)
class Device:
    """One kind of device to train on.

    Attributes:
        name: Key in `DEVICES`, or the driver's name for a GPU that is not in the table.
        memory_gib: Memory per device; 0 for the CPU, whose memory is the host's.
        compute_capability: NVIDIA's (major, minor); (0, 0) for the CPU.
        bf16_flag: Instructions of a CPU for products in bfloat16; empty where it has none, or this is not known.
    """

    name: str
    memory_gib: int
    compute_capability: tuple[int, int]
    bf16_flag: str = ""

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


def _device(name: DeviceName, memory_gib: int, capability: tuple[int, int]) -> tuple[str, Device]:
    return name, Device(name, memory_gib, capability)


DEVICES: dict[str, Device] = dict(
    (
        _device("T4", 16, (7, 5)),
        _device("V100", 16, (7, 0)),
        _device("A10G", 24, (8, 6)),
        _device("L4", 24, (8, 9)),
        _device("A100-40GB", 40, (8, 0)),
        _device("A100-80GB", 80, (8, 0)),
        _device("H100", 80, (9, 0)),
        _device("CPU", 0, (0, 0)),
    )
)


def choose_precision(requested: PrecisionChoice, device: Device) -> Precision:
    """The precision to compute in.

    Args:
        requested: What the configuration says; `auto` picks bf16 where the hardware has it, fp16 (with loss
            scaling) on older GPUs, and on the CPU fp32 unless it has instructions for bf16.
        device: The device it will run on.

    Returns:
        The precision.

    Raises:
        ConfigError: bf16 on a GPU without it, or fp16 on the CPU.
    """
    if requested == "auto":
        if not device.is_gpu:
            return "bf16" if device.bf16_flag else "fp32"
        return "bf16" if device.has_bf16 else "fp16"
    if requested == "bf16" and not device.has_bf16:
        major, minor = device.compute_capability
        raise ConfigError.single(
            "training.precision",
            requested,
            f"{device.name} (compute capability {major}.{minor}) has no bfloat16; torch would emulate it slowly.",
            "Use 'auto' or 'fp16', or a device of compute capability 8.0 or later.",
            code="plan-does-not-fit",
        )
    if requested == "fp16" and not device.is_gpu:
        raise ConfigError.single(
            "training.precision",
            requested,
            "fp16 does not train on the CPU.",
            "Use 'auto', 'fp32' or 'bf16'.",
            code="plan-does-not-fit",
        )
    return requested


def torch_dtype(precision: Precision) -> "torch.dtype":
    """The torch type of a precision."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def detect_device() -> Device:
    """The device of this machine: the table's entry for its first GPU, a generic entry for an unknown one, or CPU."""
    import torch

    if not torch.cuda.is_available():
        cpuinfo = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
        return replace(DEVICES["CPU"], bf16_flag=bf16_flag(cpuinfo))
    properties = torch.cuda.get_device_properties(0)
    return device_of(properties.name, properties.total_memory / 2**30, (properties.major, properties.minor))


def device_of(name: str, memory_gib: float, capability: tuple[int, int]) -> Device:
    """The table's entry for a GPU, or a generic one.

    Args:
        name: The driver's name for it.
        memory_gib: Memory that the driver shows, in GiB.
        capability: Compute capability.
    """
    shown = round(memory_gib)
    for device in DEVICES.values():
        if device.is_gpu and device.compute_capability == capability and _LEAST_SHOWN <= shown / device.memory_gib <= 1:
            return device
    return Device(name, shown, capability)


def bf16_flag(cpuinfo: str) -> str:
    """The instructions for bfloat16 that a CPU has; empty for none.

    Args:
        cpuinfo: The text of /proc/cpuinfo.
    """
    flags = {
        flag for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features")) for flag in line.split()
    }
    return next((flag for flag in _BF16_FLAGS if flag in flags), "")


def gpu_count() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()

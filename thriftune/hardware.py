"""The GPUs people can get, and what follows from each: memory, precision, attention, backend.

Sources: NVIDIA's data sheets for memory and compute capability. Which machines carry them: thriftune/catalogue.yaml.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thriftune.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["T4", "V100", "A10G", "L4", "A100-40GB", "A100-80GB", "H100", "CPU"]
# A driver reports a little less than the data sheet: a 16 GB T4 shows 14.6 GiB.
_LEAST_SHOWN = 0.85
Precision = Literal["fp32", "fp16", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Device:
    """One kind of device to train on.

    Attributes:
        name: Key in `DEVICES`, or what the driver calls a GPU that is not there.
        memory_gib: Memory per device; 0 for the CPU, whose memory is the host's.
        compute_capability: NVIDIA's (major, minor); (0, 0) for the CPU.
    """

    name: str
    memory_gib: int
    compute_capability: tuple[int, int]

    @property
    def is_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.compute_capability > (0, 0)

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 runs in hardware (compute capability 8 and later), or on the CPU natively.

        Never torch's own `is_bf16_supported`: it says yes on a T4, because it counts emulation.
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
            scaling) on older GPUs, fp32 on the CPU.
        device: What it will run on.

    Returns:
        The precision.

    Raises:
        ConfigError: bf16 asked of a GPU without it, or fp16 of the CPU.
    """
    if requested == "auto":
        if not device.is_gpu:
            return "fp32"
        return "bf16" if device.has_bf16 else "fp16"
    if requested == "bf16" and not device.has_bf16:
        major, minor = device.compute_capability
        raise ConfigError.single(
            "training.precision",
            requested,
            f"{device.name} (compute capability {major}.{minor}) has no bfloat16; torch would emulate it slowly.",
            "Use 'auto' or 'fp16', or a device of compute capability 8.0 or later.",
        )
    if requested == "fp16" and not device.is_gpu:
        raise ConfigError.single(
            "training.precision", requested, "fp16 does not train on the CPU.", "Use 'auto', 'fp32' or 'bf16'."
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
        return DEVICES["CPU"]
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    memory_gib = round(properties.total_memory / 2**30)
    for device in DEVICES.values():
        if device.compute_capability == capability and _LEAST_SHOWN <= memory_gib / device.memory_gib <= 1:
            return device
    return Device(properties.name, memory_gib, capability)


def gpu_count() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()

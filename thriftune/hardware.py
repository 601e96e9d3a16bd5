"""The devices that runs train on, and what each one implies: precision, backend, what the driver shows of it.

Their figures are data: thriftune/devices.yaml. Which machines carry them: thriftune/planning/catalogue.yaml.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thriftune import devices
from thriftune.devices import CPU, Device, Speed
from thriftune.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CPU", "DEVICES", "Device", "Precision", "PrecisionChoice", "Speed", "bf16_flag", "choose_precision",
    "detect_device", "device_of", "gpu_count", "torch_dtype",
]  # fmt: skip

Precision = Literal["fp32", "fp16", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
# Linux's names for the instructions for products in bfloat16, on x86 and on ARM. With them a step takes a quarter of
# the time of a step in fp32; without them, several times as long.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
_CPUINFO = Path("/proc/cpuinfo")

# The shipped devices by name. A catalogue may have others: ask it for those of a run.
DEVICES: dict[str, Device] = devices.shipped()


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


def detect_device(known: Mapping[str, Device] = DEVICES) -> Device:
    """The device of this machine: the known one that its first GPU is, a generic entry for an unknown one, or CPU.

    Args:
        known: The known devices by name.
    """
    import torch

    if not torch.cuda.is_available():
        cpuinfo = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
        return replace(known[CPU], bf16_flag=bf16_flag(cpuinfo))
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    return device_of(properties.name, properties.total_memory / 2**30, capability, known)


def device_of(
    name: str, memory_gib: float, capability: tuple[int, ...], known: Mapping[str, Device] = DEVICES
) -> Device:
    """The kind of a GPU: the one that its driver names, else the first with its capability and memory, else its own.

    RTX 4090, L4 and others have the same capability and memory, and differ in speed and in their drivers' names alone.

    Args:
        name: The driver's name for it.
        memory_gib: Memory that the driver shows, in GiB.
        capability: Compute capability.
        known: The known devices by name.
    """
    named = (d for d in known.values() if name in d.driver_names and d.compute_capability == capability)
    alike = (d for d in known.values() if d.is_like(memory_gib, capability))
    return next(named, None) or next(alike, None) or Device(name, round(memory_gib), capability)


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

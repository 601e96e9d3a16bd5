"""Loading a model to run on the devices of one node: in full or 4-bit precision, with or without adapters."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.hardware import Device, Precision, torch_dtype
from thriftune.models import quantization
from thriftune.models.adapter_weights import attach
from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm
from thriftune.models.quantization import FourBit
from thriftune.overhead import GIB, WEIGHTS_SHARE

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """How to hold a model in memory.

    Attributes:
        device: The device it runs on.
        precision: Precision to compute in.
        four_bit: How linear layers are held in 4 bits; None if they are not.
        eight_bit: Whether linear layers are held in 8 bits, which is for answering, not for training.
    """

    device: Device
    precision: Precision
    four_bit: FourBit | None = None
    eight_bit: bool = False


def as_stored(placement: Placement, model_dir: Path) -> Placement:
    """Hold a model that is stored in fp32 in fp32 if there is room: in 16 bits it is a different model.

    Args:
        placement: How to hold it otherwise; returned unchanged if that is in 4 or 8 bits.
        model_dir: Directory with safetensors.

    Returns:
        The placement. A warning is logged if the weights are rounded.
    """
    if (
        placement.four_bit is not None
        or placement.eight_bit
        or placement.precision == "fp32"
        or _stored_dtype(model_dir) != "float32"
    ):
        return placement
    needed = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    if needed <= sum(_limits(placement.device).values()):
        return replace(placement, precision="fp32")
    logger.warning(
        "%s is stored in fp32, but held in %s here: its %.1f GiB do not fit. Answers and losses are those of the "
        "rounded weights.",
        model_dir,
        placement.precision,
        needed / GIB,
    )
    return placement


def _stored_dtype(model_dir: Path) -> str:
    """The type that config.json names, such as float32; older files call the key torch_dtype."""
    content = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return str(content.get("dtype") or content.get("torch_dtype") or "")


def max_memory(device: Device, free_bytes: dict[int, int], host_bytes: int) -> dict[int | str, int]:
    """The memory that accelerate may fill on each device, from what is free now.

    Args:
        device: Kind of device of this machine.
        free_bytes: Free memory of each GPU, by index; empty on CPU.
        host_bytes: Available host memory.

    Returns:
        Bytes per GPU index, or for the key "cpu". On a GPU machine the host gets none: bitsandbytes cannot train
        layers that are not on a GPU, and a layer left on the host would be slow without any message.
    """
    if not device.is_gpu:
        return {"cpu": int(host_bytes * WEIGHTS_SHARE)}
    return {index: int(free * WEIGHTS_SHARE) for index, free in free_bytes.items()}


def _limits(device: Device, devices: int | None = None) -> dict[int | str, int]:
    """The memory that accelerate may fill on the first `devices` of this machine now; on all of them if None."""
    import psutil
    import torch

    free = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())[:devices]}
    return max_memory(device, free, psutil.virtual_memory().available)


def load_model(
    model_dir: Path,
    placement: Placement,
    *,
    trust_remote_code: bool = False,
    devices: int | None = None,
    only: int | None = None,
    classes: Classes | None = None,
) -> "PreTrainedModel":
    """Load a model over the visible devices of this node (`device_map="auto"`), or whole onto one of them.

    Args:
        model_dir: Directory with safetensors.
        placement: How to hold it.
        trust_remote_code: Run model code that the model ships.
        devices: Number of devices that it may use; None means all.
        only: Index of the one device that gets the whole model; None if several may share it.
        classes: Classes of the classifier to make of it; None for a causal language model.

    Returns:
        The model; a large one is split by layers over the GPUs.

    Raises:
        ModelSourceError: Some of its weights are missing.
    """
    spread: dict[str, Any] = {"device_map": "auto"}
    if only is None:
        spread["max_memory"] = _limits(placement.device, devices)
    else:
        spread["device_map"] = {"": only if placement.device.is_gpu else "cpu"}
    model = load_causal_lm(
        model_dir,
        trust_remote_code=trust_remote_code,
        classes=classes,
        dtype=torch_dtype(placement.precision),
        quantization_config=_quantization(placement),
        **spread,
    )
    if placement.four_bit:
        _report_quantized_share(model)
    return model


def attach_adapters(model: "PreTrainedModel", adapters: dict[str, Path]) -> Any:
    """Put trained adapters on a model.

    Args:
        model: The base model.
        adapters: Directories by name; the first one is active.

    Returns:
        A peft model, or the model itself if there are no adapters.

    Raises:
        AdapterError: One of them is incomplete, or made for another model.
    """
    attached: Any = model
    for name, directory in adapters.items():
        attached = attach(attached, directory, name=name)
    return attached


def _quantization(placement: Placement) -> "BitsAndBytesConfig | None":
    if placement.eight_bit:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True)
    if placement.four_bit is None:
        return None
    return quantization.configuration(torch_dtype(placement.precision), placement.four_bit)


def _report_quantized_share(model: "PreTrainedModel") -> None:
    """Log how much of the model is really in 4 bits: see `thriftune.models.quantization` for what is not."""
    layers = quantization.four_bit_layers(model)
    quantized = sum(2 * model.get_parameter(f"{name}.weight").numel() for name in layers)  # two weights per byte
    other = sum(p.numel() for p in model.parameters() if type(p).__name__ != "Params4bit")
    level = logging.INFO if quantized else logging.WARNING
    logger.log(level, "%.0f %% of the weights are in 4 bits", 100 * quantized / (quantized + other))

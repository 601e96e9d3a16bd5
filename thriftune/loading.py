"""Loading a model to run on the devices of one node: plain or in 4 bits, with or without adapters."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import quantization
from thriftune.config import RunConfig
from thriftune.hardware import Device, Precision, torch_dtype
from thriftune.memory.overhead import WEIGHTS_SHARE
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """How to hold a model in memory.

    Attributes:
        device: What it runs on.
        precision: Precision to compute in.
        four_bit: Whether linear layers are stored in NF4.
        double_quantization: Whether the quantization constants are quantized too.
    """

    device: Device
    precision: Precision
    four_bit: bool = False
    double_quantization: bool = True


def planned_placement(config: RunConfig, plan: TrainingPlan) -> Placement:
    """How a run holds its model outside ZeRO: in 4 bits where adapters train on a quantized base."""
    double = config.lora_or_default.double_quantization
    return Placement(plan.hardware, plan.precision, four_bit=plan.four_bit, double_quantization=double)


def max_memory(device: Device, free_bytes: dict[int, int], host_bytes: int) -> dict[int | str, int]:
    """What accelerate may fill on each device, from what is free there now.

    Args:
        device: Kind of device of this machine.
        free_bytes: Free memory of each GPU, by index; empty on CPU.
        host_bytes: Available host memory.

    Returns:
        Bytes per GPU index, or for the key "cpu". On a GPU machine the host gets none: bitsandbytes cannot train
        layers that are not on a GPU, and a layer left on the host would be slow without saying so.
    """
    if not device.is_gpu:
        return {"cpu": int(host_bytes * WEIGHTS_SHARE)}
    return {index: int(free * WEIGHTS_SHARE) for index, free in free_bytes.items()}


def load_model(model_dir: Path, placement: Placement, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Load a model over every visible device of this node (`device_map="auto"`).

    Args:
        model_dir: Directory with safetensors.
        placement: How to hold it.
        trust_remote_code: Run model code that the model ships.

    Returns:
        The model; large ones are split by layers over the GPUs.
    """
    import psutil
    import torch
    from transformers import AutoModelForCausalLM

    free = {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    limits = max_memory(placement.device, free, psutil.virtual_memory().available)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch_dtype(placement.precision),
        quantization_config=_quantization(placement),
        device_map="auto",
        max_memory=limits,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
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
        A peft model, or the model itself when there are no adapters.
    """
    from peft import PeftModel

    attached: Any = model
    for number, (name, directory) in enumerate(adapters.items()):
        if number == 0:
            attached = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
        else:
            attached.load_adapter(str(directory), adapter_name=name)
    return attached


def _quantization(placement: Placement) -> "BitsAndBytesConfig | None":
    if not placement.four_bit:
        return None
    dtype = torch_dtype(placement.precision)
    return quantization.configuration(dtype, double_quantization=placement.double_quantization)


def _report_quantized_share(model: "PreTrainedModel") -> None:
    """Say how much of the model is really in 4 bits: see `thriftune.quantization` for what is not."""
    layers = quantization.four_bit_layers(model)
    quantized = sum(2 * model.get_parameter(f"{name}.weight").numel() for name in layers)  # two of them in a byte
    other = sum(p.numel() for p in model.parameters() if type(p).__name__ != "Params4bit")
    level = logging.INFO if quantized else logging.WARNING
    logger.log(level, "%.0f %% of the weights are in 4 bits", 100 * quantized / (quantized + other))

"""Memory of the evaluation, which holds a model on one node without ZeRO, split by layers over its devices."""

from thriftune.config import LoraConfig, RunConfig
from thriftune.hardware import Device, Precision
from thriftune.models.architecture import Architecture
from thriftune.overhead import GIB, usable_for_weights, with_overhead
from thriftune.planning.memory import adapters

# bf16 logits, their fp32 copy, what cross-entropy makes of it, and the copy without the last position.
_LOGIT_COPIES = 2 + 4 + 4 + 2


def evaluation_gib(
    config: RunConfig, architecture: Architecture, device: Device, gpu_gib: float, devices: int, precision: Precision
) -> float | None:
    """GiB of the fullest device while held-out loss is measured.

    Args:
        config: The run.
        architecture: Its model.
        device: Kind of device.
        gpu_gib: Memory of each that the driver shows; 0 on a CPU.
        devices: GPUs of the node.
        precision: Precision to compute in.

    Returns:
        The GiB, or None where the weights do not fit the devices of one node.
    """
    # As `thriftune.models.loading.planned_placement`: in 4 bits where adapters train on a quantized base.
    held = config.lora_or_default if config.method == "qlora" else LoraConfig(four_bit=False)
    on = devices if device.is_gpu else 1
    shares = adapters.split(architecture, held, precision, on, usable_for_weights(gpu_gib), trains=False)
    if shares is None:
        return None
    weights = max(share.weights.held_bytes(held, precision) for share in shares)
    tokens = config.evaluation.batch * config.data.max_length
    logits = _LOGIT_COPIES * tokens * architecture.vocabulary
    return sum(with_overhead({"weights": weights, "logits": logits}, on_gpu=device.is_gpu).values()) / GIB

"""QLoRA: the adapters of LoRA on a base model in 4 bits (NF4). Source: arXiv 2305.14314."""

from typing import Any

from thriftune.config import Method, RunConfig
from thriftune.methods.adapters import prepare_four_bit
from thriftune.methods.lora import Lora
from thriftune.models.quantization import FourBit


class Qlora(Lora):
    """Adapters on a base model in 4 bits."""

    name: Method = "qlora"

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """NF4, with the constants quantized as the run says."""
        return FourBit(double_quantization=config.lora_or_default.double_quantization)

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The settings of LoRA, and how the base is quantized."""
        return super().identity(config) | {"lora.double_quantization": config.lora_or_default.double_quantization}

    def _frozen(self, model: Any, config: RunConfig) -> Any:
        """The base model, with every weight that is not in 4 bits in fp32."""
        return prepare_four_bit(model, gradient_checkpointing=config.training.gradient_checkpointing)

"""LLaMA-Adapter: prompts that the upper layers attend to through a gate that starts at zero, on a frozen base model.

Source: arXiv 2303.16199.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import LlamaAdapterConfig, Method, RunConfig, Section
from thriftune.errors import ConfigError
from thriftune.methods.adapters import train_in_fp32, trainable_share
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.saving import PEFT_FOLDER, saving_adapter
from thriftune.methods.trial import require_working
from thriftune.models.architecture import Architecture, layer_of
from thriftune.models.quantization import FourBit

if TYPE_CHECKING:
    from peft import AdaptionPromptConfig

logger = logging.getLogger(__name__)

# Of the 32 layers of LLaMA-7B, the upper 30 get a prompt.
_USUAL_LAYERS, _WITHOUT = 30, 2


class LlamaAdapter(TrainingMethod):
    """Prompts inside the attention of the upper layers; an adapter comes out, which cannot be merged."""

    name: Method = "llama_adapter"

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """None: the base is held in 16 bits."""
        return None

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse a model whose attention peft does not know, or with fewer layers than the run names."""
        section = config.llama_adapter_or_default
        _require_known(architecture)
        if section.layers is not None and section.layers > architecture.layers:
            message = f"{architecture.name} has {architecture.layers} layers."
            raise ConfigError.single(
                "llama_adapter.layers", section.layers, message, f"Use at most {architecture.layers}."
            )
        require_working(self, section, architecture)

    def trained_parts(self, section: Section | None, architecture: Architecture) -> dict[str, int]:
        """The prompt and the gate of each of the upper layers."""
        assert isinstance(section, LlamaAdapterConfig)
        names = sorted(
            {layer_of(name) for name in architecture.shapes if layer_of(name)},
            key=lambda name: int(name.rpartition(".")[2]),
        )
        upper = names[-_layers(section, architecture) :]
        return dict.fromkeys(upper, section.tokens * architecture.hidden_size + 1)

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """A model with new prompts, which alone train."""
        from peft import get_peft_model

        assert isinstance(section, LlamaAdapterConfig)
        there = min(_layers(section, architecture), model.config.get_text_config().num_hidden_layers)
        return train_in_fp32(get_peft_model(model, _peft_config(section, there)))

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The length of the prompts, and the layers that have one."""
        return {f"llama_adapter.{name}": value for name, value in config.llama_adapter_or_default.model_dump().items()}

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Put new prompts into a base model."""
        from transformers import set_seed

        set_seed(config.seed)
        section = config.llama_adapter_or_default
        adapted = self.put_on(model, section, architecture)
        logger.info("Prompts of %d tokens in the upper %d layers", section.tokens, _layers(section, architecture))
        logger.info("%.2f %% of the weights train", 100 * trainable_share(adapted))
        return adapted

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write the prompts alone, without the base model."""
        if distributed.current_rank().is_main:
            with saving_adapter(trained, config, destination) as scratch:
                trained.model.save_pretrained(scratch / PEFT_FOLDER)


def _layers(section: LlamaAdapterConfig, architecture: Architecture) -> int:
    """Number of layers that get a prompt."""
    return section.layers or max(1, min(_USUAL_LAYERS, architecture.layers - _WITHOUT))


def _peft_config(section: LlamaAdapterConfig, layers: int) -> "AdaptionPromptConfig":
    """The section as peft's own configuration, for a model that gets prompts in so many layers."""
    from peft import AdaptionPromptConfig

    return AdaptionPromptConfig(adapter_len=section.tokens, adapter_layers=layers, task_type="CAUSAL_LM")


def _require_known(architecture: Architecture) -> None:
    """Refuse a kind of model for which peft has no LLaMA-Adapter.

    Raises:
        ConfigError: Names the kinds that it has.
    """
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    kind = architecture.config().get_text_config().model_type
    if kind in TRANSFORMERS_MODEL_CONFIG:
        return
    raise ConfigError.single(
        "method",
        "llama_adapter",
        f"peft has it for models of type {', '.join(sorted(TRANSFORMERS_MODEL_CONFIG))}, and {architecture.name} is of "
        f"type {kind}.",
        "Use method: lora, qlora or prefix.",
        code="lora-refused",
    )

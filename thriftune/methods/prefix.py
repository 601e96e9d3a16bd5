"""Prefix tuning: keys and values before the first token of every layer train, on a frozen base model.

Source: arXiv 2101.00190.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import Method, PrefixConfig, RunConfig, Section
from thriftune.methods.adapters import trainable_share
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.saving import PEFT_FOLDER, saving_adapter
from thriftune.methods.trial import require_working
from thriftune.models.architecture import Architecture
from thriftune.models.positions import require_positions
from thriftune.models.quantization import FourBit

if TYPE_CHECKING:
    import torch
    from peft import PrefixTuningConfig

logger = logging.getLogger(__name__)


class Prefix(TrainingMethod):
    """A prefix of trained keys and values; an adapter comes out, which cannot be merged."""

    name: Method = "prefix"

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """None: the base is held in 16 bits."""
        return None

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse a model that cannot compute with a prefix, or whose table of positions ends within its rows."""
        section = config.prefix_or_default
        require_working(self, section, architecture)
        require_positions(architecture, config.data.max_length, section.virtual_tokens)

    def trained_parts(self, section: Section | None, architecture: Architecture) -> dict[str, int]:
        """All of the prefix: it is not in a module of the base model."""
        assert isinstance(section, PrefixConfig)
        return {"": _parameters(section, architecture)}

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """A model with a new prefix, which alone trains."""
        from thriftune.methods.prefix_model import PrefixModel

        assert isinstance(section, PrefixConfig)
        return PrefixModel(model, _peft_config(section))

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The length of the prefix, and how it is computed."""
        return {f"prefix.{name}": value for name, value in config.prefix_or_default.model_dump().items()}

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Put a new prefix on a base model."""
        from transformers import set_seed

        set_seed(config.seed)
        section = config.prefix_or_default
        adapted = self.put_on(model, section, architecture)
        logger.info("A prefix of %d tokens", section.virtual_tokens)
        logger.info("%.2f %% of the weights train", 100 * trainable_share(adapted))
        return adapted

    def beside(self, model: Any) -> "dict[str, torch.Tensor]":
        """Everything that trains: peft saves a prefix without the network that computes it."""
        return {name: parameter.detach() for name, parameter in _trained(model).items()}

    def take(self, model: Any, tensors: "Mapping[str, torch.Tensor]") -> bool:
        """Take it back."""
        import torch

        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(tensors[name])
        return True

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write the prefix alone, without the base model and without the network that computed it."""
        if distributed.current_rank().is_main:
            with saving_adapter(trained, config, destination, tensors=1) as scratch:
                trained.model.save_pretrained(scratch / PEFT_FOLDER)


def _trained(model: Any) -> "dict[str, torch.nn.Parameter]":
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _peft_config(section: PrefixConfig) -> "PrefixTuningConfig":
    """The section as peft's own configuration; the paper's network is as wide as the model where nothing is said."""
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        num_virtual_tokens=section.virtual_tokens, prefix_projection=section.projection, task_type="CAUSAL_LM"
    )


@lru_cache(maxsize=64)
def _parameters(section: PrefixConfig, architecture: Architecture) -> int:
    """Trained parameters: counted in the model that peft makes, on the meta device."""
    import torch

    model = Prefix().put_on(architecture.on_meta(torch.float32), section, architecture)
    return sum(parameter.numel() for parameter in _trained(model).values())

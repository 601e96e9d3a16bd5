"""LoRA: low-rank adapters train on a frozen base model in 16 bits (fp32 on a CPU), and an adapter comes out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import damage, distributed
from thriftune.config import LoraConfig, Method, RunConfig, Section
from thriftune.methods import initial_values
from thriftune.methods.adapter_checks import require_trainable
from thriftune.methods.adapters import (
    adapter_parameters,
    dropout_of,
    fused_adapters,
    peft_config,
    resolved,
    train_in_fp32,
    trainable_share,
    without_layer_numbers,
)
from thriftune.methods.base import Batch, Trained, TrainingMethod
from thriftune.methods.saving import PEFT_FOLDER, saving_adapter
from thriftune.models.adapter_resumption import require_alike, require_same_shape
from thriftune.models.adapter_weights import RESUME_FROM, attach
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.redaction import redacted, unsigned

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Keys of the section that decide what a training makes, and that `identity` takes as they are.
_DECIDING = ("rank", "alpha", "variant", "init", "bias")


class Lora(TrainingMethod):
    """Adapters on a base model that is held as it is."""

    name: Method = "lora"

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """None: the base is held in 16 bits."""
        return None

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse adapters that peft cannot put on the model, or that differ from the ones to continue."""
        lora = config.lora_or_default
        require_trainable(lora, architecture, self.four_bit(config))
        if start is not None:
            damage.require_undamaged(start, RESUME_FROM, content=True)
            require_same_shape(lora, start)
            require_alike(lora, architecture, start)

    def trained_parts(self, section: Section | None, architecture: Architecture) -> dict[str, int]:
        """The parameters of the adapter on each module."""
        assert isinstance(section, LoraConfig)
        return adapter_parameters(architecture, section)

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """Put new adapters on a model that is frozen already."""
        from peft import get_peft_model

        assert isinstance(section, LoraConfig)
        config = peft_config(without_layer_numbers(resolved(section, architecture)), architecture.labels)
        return train_in_fp32(get_peft_model(model, config))

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The adapters: their shape, where they are, and what they start from."""
        lora = config.lora_or_default
        return {
            **{f"lora.{name}": getattr(lora, name) for name in _DECIDING},
            "lora.dropout": dropout_of(lora),
            "lora.target_modules": sorted(lora.target_modules) if lora.target_modules else None,
            "lora.modules_to_save": sorted(lora.modules_to_save),
            "lora.rank_patterns": [[each.pattern, each.rank, each.alpha or lora.alpha] for each in lora.rank_patterns],
            # As a manifest holds it: without secrets, and the same for every signature.
            "lora.resume_from": redacted(unsigned(lora.resume_from)) if lora.resume_from else None,
        }

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Put adapters on a base model: new ones, or those of an earlier training."""
        from peft import get_peft_model
        from transformers import set_seed

        lora = resolved(config.lora_or_default, architecture)
        base = self._frozen(model, config)
        set_seed(config.seed)
        if start is not None:
            logger.info("Continuing from the adapter in %s", start)
            adapted: Any = attach(base, start, field=RESUME_FROM, is_trainable=True, dropout=lora.dropout)
        else:
            on_experts = (
                " (they are on fused experts, where peft has no dropout)" if fused_adapters(lora, architecture) else ""
            )
            logger.info("Adapters of rank %d with dropout %g%s", lora.rank, lora.dropout, on_experts)
            adapted = get_peft_model(base, peft_config(lora, architecture.labels))
        logger.info("%.2f %% of the weights train", 100 * trainable_share(adapted))
        return train_in_fp32(adapted)

    def begin(self, model: Any, config: RunConfig, batches: Callable[[int, int], Sequence[Batch]]) -> None:
        """Give new adapters the first values that the run asks for."""
        from transformers import set_seed

        lora = config.lora_or_default
        if lora.init == "default":
            return
        set_seed(config.seed)
        initial_values.from_weights(model, lora)
        if lora.init == "eva":
            tokens = max([lora.rank, *(pattern.rank for pattern in lora.rank_patterns)])
            initial_values.from_rows(model, batches(initial_values.EVA_BATCHES, tokens))

    def beside(self, model: Any) -> "dict[str, torch.Tensor]":
        """The first adapter, where it was taken out of the weights of the base model."""
        return initial_values.initial_adapter(model)

    def take(self, model: Any, tensors: "Mapping[str, torch.Tensor]") -> bool:
        """Take the first adapter out of the base model's weights again; peft loads the present one."""
        initial_values.resume_with(model, tensors)
        return False

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write the adapter alone, without the base model."""
        state = trained.state("fp32", "none")
        if not distributed.current_rank().is_main:
            return
        model, initial = trained.model, initial_values.initial_adapter(trained.model)
        with saving_adapter(trained, config, destination) as scratch:
            # The state has no place for a first adapter; where there is one, this process holds every weight.
            given = initial_values.saved_as_difference(initial, scratch) or {"state_dict": state}
            model.save_pretrained(scratch / PEFT_FOLDER, save_embedding_layers=False, **given)

    def _frozen(self, model: Any, config: RunConfig) -> Any:
        """The base model as it is: peft freezes it, and the Trainer turns checkpointing on."""
        return model

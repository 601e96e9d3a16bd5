"""LoRA: low-rank adapters train on a frozen base model in 16 bits (fp32 on a CPU), and an adapter comes out."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from thriftune import artifacts, damage, distributed
from thriftune.config import LoraConfig, Method, RunConfig, Section
from thriftune.methods.adapters import (
    DROPOUT,
    adapter_parameters,
    fused_adapters,
    peft_config,
    require_trainable,
    resolved,
    trainable_share,
    without_layer_numbers,
)
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.saved import require_all_saved
from thriftune.models.adapter_weights import RESUME_FROM, attach, require_alike, require_same_shape
from thriftune.models.architecture import Architecture
from thriftune.models.files import ADAPTER_FILES
from thriftune.models.quantization import FourBit
from thriftune.models.source import kind_of
from thriftune.redaction import redacted, unsigned

logger = logging.getLogger(__name__)

# Keys of the section that decide what a training makes, and that `identity` takes as they are.
_DECIDING = ("rank", "alpha")


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
        return get_peft_model(model, peft_config(without_layer_numbers(resolved(section, architecture))))

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The adapters: their shape, where they are, and what they start from."""
        lora = config.lora_or_default
        return {
            **{f"lora.{name}": getattr(lora, name) for name in _DECIDING},
            "lora.dropout": DROPOUT if lora.dropout is None else lora.dropout,
            "lora.target_modules": sorted(lora.target_modules) if lora.target_modules else None,
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
            adapted = get_peft_model(base, peft_config(lora))
        logger.info("%.2f %% of the weights train", 100 * trainable_share(adapted))
        return adapted

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write the adapter alone, without the base model."""
        state = trained.state("fp32", "none")
        if not distributed.current_rank().is_main:
            return
        logger.info("Saving the adapter to %s", destination)
        model = trained.model
        # Where the base model came from, not its directory on this node.
        model.peft_config["default"].base_model_name_or_path = redacted(config.model.source)
        is_on_hub = kind_of(config.model.source) == "hub"
        model.peft_config["default"].revision = trained.record["model_version"] if is_on_hub else None
        what = "saving the adapter"
        with artifacts.writing(destination, what) as directory, tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch, state_dict=state, save_embedding_layers=False)
            require_all_saved(model, Path(scratch))
            for name in ADAPTER_FILES:
                shutil.copy(Path(scratch) / name, directory / name)
            artifacts.write_manifest(directory, "adapter", trained.record)

    def _frozen(self, model: Any, config: RunConfig) -> Any:
        """The base model as it is: peft freezes it, and the Trainer turns checkpointing on."""
        return model

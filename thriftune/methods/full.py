"""Full fine-tuning: every weight trains, and an ordinary model directory comes out."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed
from thriftune.config import Method, ModelConfig, RunConfig, Section
from thriftune.errors import ThriftuneError
from thriftune.hardware import torch_dtype
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.models import architecture as architectures
from thriftune.models import saving
from thriftune.models.architecture import Architecture
from thriftune.models.base_weights import stored
from thriftune.models.classifier import Classes
from thriftune.models.quantization import FourBit
from thriftune.models.stopping import save_tokenizer
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Full(TrainingMethod):
    """Every weight of the model trains."""

    name: Method = "full"

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """None: weights in 4 bits cannot be trained."""
        return None

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Nothing to refuse: every architecture can be trained whole."""

    def trained_parts(self, section: Section | None, architecture: Architecture) -> dict[str, int]:
        """All parameters of each module."""
        parts: dict[str, int] = {}
        for name, shape in architecture.shapes.items():
            module = name.rpartition(".")[0]
            parts[module] = parts.get(module, 0) + math.prod(shape)
        return parts

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """The model as it is."""
        return model

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """No settings of its own: the section `training` decides everything."""
        return {}

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """The model as it is: all of its parameters train."""
        return model

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write a model directory that transformers can load without this package. Collective."""
        saved = trained.saved
        kept, rounding = (saved.dtype, saved.rounding) if saved else saving.unmeasured(config.training.save_dtype)
        state = trained.state(kept, rounding)
        if not distributed.current_rank().is_main:
            return
        model, dtype = trained.model, torch_dtype(kept)
        state |= self._frozen(trained, config, set(state), dtype)
        logger.info("Saving the model in %s to %s", dtype, destination)
        model.config.dtype = dtype
        model.config.use_cache = True
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        with artifacts.writing(destination, "saving the trained model", size) as directory:
            model.save_pretrained(directory, state_dict=state)
            tokenizer = load_tokenizer(trained.model_dir, trust_remote_code=config.model.trust_remote_code)
            save_tokenizer(tokenizer, directory)
            artifacts.write_manifest(directory, "model", trained.record)

    def _frozen(
        self, trained: Trained, config: RunConfig, gathered: set[str], dtype: "torch.dtype"
    ) -> "dict[str, torch.Tensor]":
        """Weights that do not train, from the files of the base model: memory may hold them in fewer bits."""
        model = trained.model
        tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        lacking = model.state_dict().keys() - gathered - tied
        if lost := sorted(lacking - frozen):
            raise ThriftuneError(f"{len(lost)} trained weights were not gathered, such as {lost[0]}; nothing is saved.")
        if not lacking:
            return {}
        trust = config.model.trust_remote_code
        source = ModelConfig(source=str(trained.model_dir), trust_remote_code=trust)
        architecture = architectures.of(source, labels=config.labels)
        base = stored(trained.model_dir, trust_remote_code=trust, classes=Classes.of(config))
        base = self._untrained(base, config, architecture)
        return {name: tensor.to(dtype) for name, tensor in base.state_dict().items() if name in lacking}

    def _untrained(self, base: Any, config: RunConfig, architecture: Architecture) -> Any:
        """The model before its first step, from its base model."""
        return base

"""Full fine-tuning: every weight trains, and an ordinary model directory comes out."""

import logging
import math
from pathlib import Path
from typing import Any

from thriftune import artifacts, distributed
from thriftune.config import Method, RunConfig, Section
from thriftune.hardware import torch_dtype
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.models import saving
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.models.stopping import save_tokenizer
from thriftune.models.tokenizer import load_tokenizer

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
        logger.info("Saving the model in %s to %s", dtype, destination)
        model.config.dtype = dtype
        model.config.use_cache = True
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        with artifacts.writing(destination, "saving the trained model", size) as directory:
            model.save_pretrained(directory, state_dict=state)
            tokenizer = load_tokenizer(trained.model_dir, trust_remote_code=config.model.trust_remote_code)
            save_tokenizer(tokenizer, directory)
            artifacts.write_manifest(directory, "model", trained.record)

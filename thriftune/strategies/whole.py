"""A model whose own weights train, loaded whole onto one device: each weight in the type that it is held in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config import RunConfig
from thriftune.hardware import torch_dtype
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.strategies.mapped import give_back_pages, map_model
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch


def load(
    model_dir: Path,
    method: TrainingMethod,
    plan: TrainingPlan,
    config: RunConfig,
    architecture: Architecture,
    device: "torch.device",
) -> Any:
    """Load a model that a method prepares, one weight after another.

    What trains is held in fp32, with every bit that the base model's files have: mixed precision requires masters. What
    is frozen is held in the precision of the training, as the base under adapters is.

    Args:
        model_dir: The base model.
        method: The method, which prepares the model.
        plan: The plan.
        config: The run.
        architecture: The model's.
        device: The device that gets all of it.
    """
    import torch

    mapped = map_model(model_dir, trust_remote_code=config.model.trust_remote_code, classes=Classes.of(config))
    model = method.prepare(mapped, config, architecture, None)
    frozen = torch_dtype(plan.precision)
    for parameter in model.parameters():
        stored = parameter.data
        parameter.data = stored.to(device=device, dtype=torch.float32 if parameter.requires_grad else frozen, copy=True)
        give_back_pages(stored)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model

"""The whole model on one device, in one process, without DeepSpeed, for models that fit there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig, StrategyName
from thriftune.methods import TrainingMethod, method_of
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.loading import Placement, load_model
from thriftune.strategies import whole
from thriftune.strategies.base import Machines, Needs, Strategy
from thriftune.strategies.layers import adapters_over
from thriftune.strategies.memory import weights
from thriftune.strategies.memory.activations import StepShape
from thriftune.training_plan import TrainingPlan


class Single(Strategy):
    """Everything on one device."""

    name: StrategyName = "single"

    def describe(self, plan: TrainingPlan) -> str:
        """The one device."""
        return "on 1 GPU" if plan.hardware.is_gpu else "on 1 worker"

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """Adapters: as in `Layers` on one device. The model's own weights: in fp32 with states, where they train."""
        if not method_of(step_shape.tuned).facts.trains_weights:
            return adapters_over(architecture, step_shape, machines, optimizer)
        on_gpu = machines.device.is_gpu
        return Needs([weights.whole(architecture, self.computed(step_shape), optimizer, on_gpu=on_gpu)])

    def computed(self, step_shape: StepShape) -> StepShape:
        """In autocast, where the model's own weights train."""
        return replace(step_shape, autocast=method_of(step_shape.tuned).facts.trains_weights)

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Load the model onto the first device; in fp32 where its weights train, as mixed precision requires."""
        import torch

        if method.facts.trains_weights:
            device = torch.device("cuda", 0) if plan.hardware.is_gpu else torch.device("cpu")
            return whole.load(model_dir, method, plan, config, architecture, device)
        placement = Placement(plan.hardware, plan.precision, method.four_bit(config))
        trust, classes = config.model.trust_remote_code, Classes.of(config)
        model = load_model(model_dir, placement, trust_remote_code=trust, devices=1, classes=classes)
        return method.prepare(model, config, architecture, start)

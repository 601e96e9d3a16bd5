"""Split by layers over the devices of one node, in one process: each device computes while the others wait."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig, StrategyName
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.loading import Placement, load_model
from thriftune.overhead import usable_for_weights
from thriftune.strategies.base import Machines, Needs, Strategy
from thriftune.strategies.coordination import Coordination
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.adapters import phases, split
from thriftune.training_plan import TrainingPlan


class Layers(Strategy):
    """Decoder layers are spread over the devices of a node, as transformers' `device_map="auto"` places them."""

    name: StrategyName = "layers"

    def describe(self, plan: TrainingPlan) -> str:
        """The number of devices that the model is split over."""
        count, kind = plan.devices_per_node, "GPU" if plan.hardware.is_gpu else "worker"
        return f"split by layers over {count} {kind}s" if count > 1 else f"on 1 {kind}"

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """The layers of the base model on each device, with their adapters."""
        return adapters_over(architecture, step_shape, machines, optimizer)

    def coordination(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, accumulation: int
    ) -> Coordination:
        """One device computes, and the others wait for it; what passes from one to the next is small."""
        alone = super().coordination(architecture, step_shape, machines, settings, accumulation)
        return replace(alone, at_a_time=1)

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Load the base model onto the devices, and put adapters on it."""
        placement = Placement(plan.hardware, plan.precision, method.four_bit(config))
        trust, devices = config.model.trust_remote_code, plan.devices_per_node if plan.hardware.is_gpu else None
        classes = Classes.of(config)
        base = load_model(model_dir, placement, trust_remote_code=trust, devices=devices, classes=classes)
        return method.prepare(base, config, architecture, start)


def adapters_over(
    architecture: Architecture, step_shape: StepShape, machines: Machines, optimizer: str
) -> Needs | None:
    """Memory of adapters on a frozen base, on the devices of one node; None where the base does not fit on these.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes, with the adapters.
        machines: The machines it runs on.
        optimizer: `training.optimizer`, or sgd.
    """
    shares = split(
        architecture,
        step_shape.tuned,
        step_shape.four_bit,
        step_shape.precision,
        machines.devices_per_node,
        usable_for_weights(machines.gpu_gib, machines.device),
    )
    if shares is None:
        return None
    on_gpu = machines.device.is_gpu
    return Needs([phases(share, step_shape, optimizer, architecture, on_gpu=on_gpu) for share in shares])

"""Data parallel: a copy of the model on each device, each trained on other rows, with torch's DistributedDataParallel.

The Trainer sets DistributedDataParallel up; what is saved is the same for any number of processes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune import distributed
from thriftune.config import RunConfig, StrategyName
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.loading import Placement, load_model
from thriftune.strategies import whole
from thriftune.strategies.base import Machines, Needs
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.items import BUCKETS, FORWARD_BACKWARD, GRADIENTS, SENT, SHARING, WEIGHTS
from thriftune.strategies.single import Single
from thriftune.training_plan import TrainingPlan

_SENT_AT_ONCE = 250 * 2**20  # broadcast_bucket_size


class Ddp(Single):
    """The whole model on every device."""

    name: StrategyName = "ddp"

    def describe(self, plan: TrainingPlan) -> str:
        """The number of copies."""
        kind = "GPU" if plan.hardware.is_gpu else "worker"
        return f"whole on each of {plan.batch.world_size} {kind}s"

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """As on one device, and the buckets in which gradients are summed, which stay from step to step.

        Source: torch.nn.parallel.DistributedDataParallel without gradient_as_bucket_view: its buckets hold a copy of
        every gradient. When it is made, all weights are sent from the first rank, two buckets of them at a time.
        """
        alone = replace(machines, nodes=1, devices_per_node=1)
        needs = super().memory(architecture, step_shape, alone, settings, optimizer)
        if needs is None:
            return None
        device = {moment: {**items, BUCKETS: items[GRADIENTS]} for moment, items in needs.devices[0].items()}
        weights = device[FORWARD_BACKWARD][WEIGHTS]
        device[SHARING] = {WEIGHTS: weights, SENT: min(weights, 2 * _SENT_AT_ONCE)}
        return replace(needs, devices=[device] * machines.devices_per_node)

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Load the model onto this process's device; a weight in 4 bits is quantized there when it is read."""
        import torch

        index = distributed.current_rank().local_index
        if method.facts.trains_weights:
            device = torch.device("cuda", index) if plan.hardware.is_gpu else torch.device("cpu")
            return whole.load(model_dir, method, plan, config, architecture, device)
        placement = Placement(plan.hardware, plan.precision, method.four_bit(config))
        trust, classes = config.model.trust_remote_code, Classes.of(config)
        model = load_model(model_dir, placement, trust_remote_code=trust, only=index, classes=classes)
        return method.prepare(model, config, architecture, start)

    def trainer_arguments(
        self, plan: TrainingPlan, config: RunConfig, model: Any, *, is_converted: bool
    ) -> dict[str, Any]:
        """Every parameter that trains is used in every pass, and no buffer changes."""
        return {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}

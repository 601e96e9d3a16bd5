"""The whole model on one device, in one process, without DeepSpeed, for models that fit there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig, StrategyName
from thriftune.hardware import Precision
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.loading import Placement, load_model
from thriftune.strategies.base import Machines, Needs, Strategy
from thriftune.strategies.layers import adapters_over
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.adapters import state_bytes
from thriftune.strategies.memory.items import AUTOCAST_COPIES, FORWARD_BACKWARD, STATES
from thriftune.strategies.zero import memory as zero_memory
from thriftune.strategies.zero.layout import Layout
from thriftune.training_plan import TrainingPlan

# Where all weights train, they and AdamW's states are in fp32, and autocast computes with copies in 16 bits.
_MASTERS: Precision = "fp32"
_HALF = 2


class Single(Strategy):
    """Everything on one device."""

    name: StrategyName = "single"

    def describe(self, plan: TrainingPlan) -> str:
        """The one device."""
        return "on 1 GPU" if plan.hardware.is_gpu else "on 1 worker"

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """Adapters: as in `Layers` on one device. All weights: with their gradients and optimizer states, in fp32."""
        if step_shape.tuned is not None:
            return adapters_over(architecture, step_shape, machines, optimizer)
        in_autocast = replace(step_shape, autocast=True)
        activations = measure(architecture, in_autocast).whole()
        shards = zero_memory.shards(
            architecture,
            replace(step_shape, precision=_MASTERS),
            Layout(0),
            1,
            activations,
            on_gpu=machines.device.is_gpu,
        )
        # bitsandbytes keeps the states of embeddings in fp32.
        embedding = architecture.vocabulary * architecture.hidden_size
        states = state_bytes(architecture.parameters - embedding, optimizer) + state_bytes(embedding, "adamw")
        own = {zero_memory.BUFFERS: 0, STATES: states}
        device = {moment: {**items, **own} for moment, items in shards.device.items()}
        if step_shape.precision != _MASTERS:
            device[FORWARD_BACKWARD][AUTOCAST_COPIES] = _HALF * architecture.parameters
        return Needs([device])

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
        placement = Placement(plan.hardware, held_in(method, plan), method.four_bit(config))
        model = load_model(model_dir, placement, trust_remote_code=config.model.trust_remote_code, devices=1)
        return method.prepare(model, config, architecture, start)


def held_in(method: TrainingMethod, plan: TrainingPlan) -> Precision:
    """The precision that a process holds a whole model in.

    Args:
        method: The method: where it trains the model's weights, they are master weights.
        plan: The plan.
    """
    return _MASTERS if method.facts.trains_weights else plan.precision

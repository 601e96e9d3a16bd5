"""FSDP: torch's `fully_shard`, with a process for each device, over which weights, gradients and states are divided."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import RunConfig, StrategyName
from thriftune.distributed import Rank
from thriftune.hardware import torch_dtype
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.substitution import WeightOf
from thriftune.strategies.base import Machines, Needs, StateFiles, Strategy
from thriftune.strategies.coordination import Coordination
from thriftune.strategies.fsdp import memory, sharding, state
from thriftune.strategies.fsdp.policy import Settings
from thriftune.strategies.mapped import map_model
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.quantized_loading import with_four_bit_layers
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

_OFFLOADED = "cpu_offload"


class Fsdp(Strategy):
    """FSDP2, with the types, units and offloading of its section of the run file."""

    name: StrategyName = "fsdp"

    def options(self, config: RunConfig) -> dict[str, str]:
        """The settings of the run's file; without a section, those by default, then with shards in host memory."""
        settings = Settings.of(config.fsdp_or_default)
        if config.fsdp is not None or config.hardware.device == "CPU":
            return {"": settings.write()}
        return {"": settings.write(), _OFFLOADED: settings.offloaded().write()}

    def describe(self, plan: TrainingPlan) -> str:
        """The number of parts, and where they are."""
        kind = "GPU" if plan.hardware.is_gpu else "worker"
        where = ", with shards in host memory" if Settings.read(plan.settings).offloads(plan.hardware) else ""
        return f"FSDP over {plan.batch.world_size} {kind}s{where}"

    def short(self, plan: TrainingPlan) -> str:
        """Whether shards are in host memory."""
        return _OFFLOADED if Settings.read(plan.settings).offloads(plan.hardware) else ""

    def written(self, settings: str) -> dict[str, str]:
        """Where shards are, which is all that a plan chooses."""
        return {f"fsdp.{_OFFLOADED}": "true" if Settings.read(settings).cpu_offload else "false"}

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """What one rank holds; all ranks hold the same."""
        read = Settings.read(settings)
        read.require_types(step_shape.precision, machines.device)
        return memory.needs(architecture, step_shape, machines, read)

    def coordination(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, accumulation: int
    ) -> Coordination:
        """Gathered units and divided gradients, in every pass."""
        return memory.coordination(architecture, step_shape, machines, Settings.read(settings), accumulation)

    def identity(self, settings: str) -> dict[str, Any]:
        """The types, which change its numbers; checkpoints fit any number of ranks."""
        read = Settings.read(settings)
        return {
            "strategy": self.name,
            "fsdp.param_dtype": read.param_dtype,
            "fsdp.reduce_dtype": read.reduces_in,
        }

    def join(self, plan: TrainingPlan) -> Rank:
        """Join the job; on GPUs with gloo beside NCCL, for what is in host memory."""
        backend = plan.hardware.backend
        return distributed.join(f"cpu:gloo,cuda:{backend}" if plan.hardware.is_gpu else backend)

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Map the model's files, and let every rank read its own rows of each weight."""
        settings = Settings.read(plan.settings)
        computes_in = torch_dtype(settings.computes_in(plan.precision))
        how = sharding.Sharding(
            computes_in=computes_in,
            reduces_in=torch_dtype(settings.reduces_in),
            device=_device(plan),
            wrap=settings.wrap,
            reshards=settings.reshard_after_forward,
            offloads=settings.offloads(plan.hardware),
        )
        mapped = map_model(model_dir, trust_remote_code=config.model.trust_remote_code, classes=Classes.of(config))
        four_bit = method.four_bit(config)
        layers = with_four_bit_layers(mapped, computes_in, four_bit) if four_bit else []
        sharding.make_blank(layers, computes_in)
        model = method.prepare(mapped, config, architecture, start)
        sharding.shard(model, layers, how)
        return model

    def trainer_arguments(
        self, plan: TrainingPlan, config: RunConfig, model: Any, *, is_converted: bool
    ) -> dict[str, Any]:
        """Gradients are reduced in every pass: else each rank would hold those of all weights until the last one."""
        return {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}

    def master_weights(self, trainer: "Trainer") -> WeightOf:
        """Whole weights from the shards, which are fp32 where they train."""
        model: Any = trainer.model
        held = state.shards(model)

        def gathered(name: str, _: "torch.nn.Parameter") -> "torch.Tensor":
            whole: torch.Tensor = held[name].detach().full_tensor().float()  # type: ignore[attr-defined]
            return whole.to(trainer.args.device)  # from the host, where shards are offloaded

        return gathered

    def load_trained(self, trainer: "Trainer", checkpoint: Path, *, is_converted: bool) -> None:
        """Read each rank's parts of what trains."""
        self.state_files.load_weights(trainer, checkpoint)

    @property
    def state_files(self) -> StateFiles:
        """Torch's distributed checkpoint, whose parts any number of ranks reads; one such object for each training."""
        return state.ShardFiles()

    def record(self, trainer: "Trainer") -> dict[str, Any]:
        """The settings and the number of ranks of the training."""
        return {"fsdp": {"ranks": distributed.current_rank().world_size}}


def _device(plan: TrainingPlan) -> "torch.device":
    import torch

    return torch.device("cuda", distributed.current_rank().local_index) if plan.hardware.is_gpu else torch.device("cpu")

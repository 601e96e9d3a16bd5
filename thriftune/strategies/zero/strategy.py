"""DeepSpeed ZeRO: one process per device, over which the stage shards weights, gradients and optimizer states."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed_configs
from thriftune import distributed
from thriftune.config import AUTO, RunConfig, StrategyName
from thriftune.distributed import Rank
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import Precision, torch_dtype
from thriftune.methods import METHODS, TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.quantization import FourBit
from thriftune.models.substitution import WeightOf
from thriftune.strategies.base import Machines, Needs, Strategy
from thriftune.strategies.coordination import Coordination
from thriftune.strategies.mapped import copied_bytes, map_model
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.quantized_loading import with_four_bit_layers
from thriftune.strategies.zero import configuration, exchange, loading, memory, operators, universal
from thriftune.strategies.zero.frozen import may_lack_frozen
from thriftune.strategies.zero.layout import Layout, layout
from thriftune.strategies.zero.masters import masters_of
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import Trainer

# The shipped configurations, the fastest first: a higher stage moves more over the network, and offloading moves
# everything over PCIe at each step.
FASTEST_FIRST = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
_FIELD = "zero.config"
_FP32, _MOMENTS, _HALF = 4, 8, 2


def settings_of(name: str, config: dict[str, Any]) -> str:
    """A configuration as the settings of a plan.

    Args:
        name: Name of its file; empty for one that stands in the run file.
        config: The content of the file, or of the key in the run file.
    """
    return json.dumps({"name": name, "config": config}, sort_keys=True)


def config_in(settings: str) -> dict[str, Any]:
    """The DeepSpeed configuration in the settings of a plan.

    Args:
        settings: What `settings_of` made.
    """
    config: dict[str, Any] = json.loads(settings)["config"]
    return config


class Zero(Strategy):
    """DeepSpeed ZeRO, with the stage and the offloading that its configuration names."""

    name: StrategyName = "zero"

    def options(self, config: RunConfig) -> dict[str, str]:
        """The shipped configurations, or the one that the run names or contains."""
        named = config.zero_or_default.config
        if isinstance(named, dict):
            return {"": settings_of("", named)}
        names = FASTEST_FIRST if named == AUTO else (named,)
        try:
            loaded = {name: deepspeed_configs.load(name) for name in names}
        except (FileNotFoundError, ValueError) as error:
            remedy = "Name another file, or repair this one."
            raise ConfigError.single(_FIELD, str(named), str(error), remedy, code="zero-config-invalid") from error
        if named == AUTO and METHODS[config.method].facts.result == "adapter":
            # A frozen base has no states to divide, only weights, which stage 3 alone divides; ddp holds copies too.
            loaded = {name: content for name, content in loaded.items() if configuration.stage(content) == 3}
        return {name: settings_of(name, content) for name, content in loaded.items()}

    def check(self, settings: str) -> list[Problem]:
        """The problems that our rules, or if they find none DeepSpeed itself, find in the configuration."""
        return configuration.check(config_in(settings), _FIELD)

    def describe(self, plan: TrainingPlan) -> str:
        """The stage and the name of the configuration file."""
        name = json.loads(plan.settings)["name"] or "configuration of the run's file"
        return f"ZeRO stage {configuration.stage(config_in(plan.settings))}, {name}"

    def short(self, plan: TrainingPlan) -> str:
        """The name of the configuration file, or the stage."""
        return str(json.loads(plan.settings)["name"] or f"ZeRO-{configuration.stage(config_in(plan.settings))}")

    def written(self, settings: str) -> dict[str, str]:
        """The name of the configuration file; one without a name stands in the run file."""
        name = json.loads(settings)["name"]
        return {_FIELD: name} if name else {}

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """What one rank holds; all ranks hold the same. Under ZeRO the optimizer is always AdamW."""
        placed = _placed(architecture, step_shape, settings)
        ranks = machines.nodes * machines.devices_per_node
        activations = measure(architecture, self.computed(step_shape)).whole()
        shards = memory.shards(architecture, step_shape, placed, ranks, activations, on_gpu=machines.device.is_gpu)
        nvme = memory.nvme_bytes(architecture, step_shape, placed, ranks)
        return Needs([shards.device] * machines.devices_per_node, shards.host, nvme, copied_bytes(architecture))

    def computed(self, step_shape: StepShape) -> StepShape:
        """With every weight trained the precision is that of the weights anyhow."""
        return replace(step_shape, in_precision=step_shape.tuned is not None)

    def coordination(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, accumulation: int
    ) -> Coordination:
        """Summed gradients and gathered weights, as the stage asks for them, and what is offloaded."""
        placed = _placed(architecture, step_shape, settings)
        return exchange.coordination(architecture, step_shape, machines, placed, accumulation)

    def checkpoint_bytes(self, trained: int, precision: Precision, settings: str, nodes: int) -> int:
        """12 bytes per parameter, spread over the nodes from stage 1 on.

        Below stage 3 the first node also writes the weights that the model computes with.

        Source: sizes of files that DeepSpeed 0.19 wrote; see tests/memory/test_disk.py.
        """
        stage, states = configuration.stage(config_in(settings)), (_FP32 + _MOMENTS) * trained
        if stage == 3:
            return states // nodes
        weights = (_FP32 if precision == "fp32" else _HALF) * trained
        if stage == 0:  # in fp32 AdamW updates the weights themselves
            return states if precision == "fp32" else states + weights
        return states // nodes + weights

    def identity(self, settings: str) -> dict[str, Any]:
        """The stage: no stage can read the shards of another, and no other strategy those of ZeRO."""
        return {"strategy": self.name, _FIELD: configuration.stage(config_in(settings))}

    def join(self, plan: TrainingPlan) -> Rank:
        """Join the job; on a CPU, tell DeepSpeed so before it is imported."""
        if not plan.hardware.is_gpu:
            distributed.use_cpu_accelerator()
        return distributed.join(plan.hardware.backend)

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Map the model's files, and shard the model over the ranks without any of them ever holding a copy.

        Weights in 4 bits are sharded before they get adapters; everything else after that, together with the adapters.
        """
        import torch

        trust, classes = config.model.trust_remote_code, Classes.of(config)
        mapped = map_model(model_dir, trust_remote_code=trust, classes=classes)
        index = distributed.current_rank().local_index
        device = torch.device("cuda", index) if plan.hardware.is_gpu else torch.device("cpu")
        complete, dtype = _complete(plan, config, mapped), torch_dtype(plan.precision)
        four_bit = method.four_bit(config)
        layers = with_four_bit_layers(mapped, dtype, four_bit) if four_bit else []
        if configuration.stage(complete) == 3:
            sharding = loading.Partitioning(complete, dtype, device)
            sharding.quantized(layers)
            model = method.prepare(mapped, config, architecture, start)
            sharding.rest_of(model)
        else:
            loading.quantize(layers, dtype, device)
            model = method.prepare(mapped, config, architecture, start)
            loading.move_to_device(model, dtype, device)
        may_lack_frozen(model)
        return model

    def trainer_arguments(
        self, plan: TrainingPlan, config: RunConfig, model: Any, *, is_converted: bool
    ) -> dict[str, Any]:
        """The complete DeepSpeed configuration.

        Once these arguments exist, transformers wraps every later `from_pretrained` in this process in `zero.Init`.
        """
        complete = _complete(plan, config, model)
        if configuration.compiles_adam(complete, is_gpu=plan.hardware.is_gpu):
            operators.make_ready("cpu_adam")
        return {"deepspeed": universal.universal_config(complete) if is_converted else complete}

    def master_weights(self, trainer: "Trainer") -> WeightOf:
        """DeepSpeed's fp32 master weights."""
        return masters_of(trainer.deepspeed)

    def load_trained(self, trainer: "Trainer", checkpoint: Path, *, is_converted: bool) -> None:
        """Load the shards, including the master weights."""
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        engine: Any = trainer.model_wrapped
        engine._config.load_universal_checkpoint = is_converted  # noqa: SLF001 - read at each loading
        deepspeed_load_checkpoint(engine, str(checkpoint))

    def record(self, trainer: "Trainer") -> dict[str, Any]:
        """The DeepSpeed configuration of the training."""
        return {"deepspeed": trainer.args.deepspeed}

    @property
    def reshard(self) -> Callable[[Path], Path] | None:
        """Shards fit one number of ranks only; DeepSpeed's universal format fits any."""
        return universal.to_universal


def _placed(architecture: Architecture, step_shape: StepShape, settings: str) -> Layout:
    """Where the settings keep what, for a model."""
    packing = _packing(step_shape.four_bit, step_shape.precision)
    return layout(config_in(settings), architecture.hidden_size, packing)


def _packing(four_bit: FourBit | None, precision: Precision) -> int:
    """Weights in one element of a tensor of the precision, where layers are in 4 bits."""
    return 1 if four_bit is None else 2 * torch_dtype(precision).itemsize


def _complete(plan: TrainingPlan, config: RunConfig, model: Any) -> dict[str, Any]:
    """The configuration of a plan with every number written out."""
    training = config.training
    return configuration.complete(
        config_in(plan.settings),
        plan.batch,
        plan.precision,
        configuration.Optimization(training.learning_rate, training.weight_decay, training.max_grad_norm),
        model.config.get_text_config().hidden_size,
        is_gpu=plan.hardware.is_gpu,
        packing=_packing(METHODS[plan.method].four_bit(config), plan.precision),
    )

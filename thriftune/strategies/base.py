"""What every strategy answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune import distributed
from thriftune.config import RunConfig, StrategyName
from thriftune.config.choices import STRATEGIES, StrategyFacts
from thriftune.distributed import Rank
from thriftune.errors import Problem
from thriftune.hardware import Device, Precision
from thriftune.methods import TrainingMethod
from thriftune.models.architecture import Architecture
from thriftune.models.rounding import RoundingMode
from thriftune.models.substitution import WeightOf
from thriftune.strategies.memory.activations import Pass
from thriftune.strategies.memory.items import Phases
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

_FP32, _MOMENTS = 4, 8


@dataclass(frozen=True)
class Machines:
    """What a run gets.

    Attributes:
        device: Kind of device.
        gpu_gib: Memory of each GPU that the driver shows; 0 on a CPU.
        nodes: Machines.
        devices_per_node: GPUs of each, or worker processes on a CPU.
    """

    device: Device
    gpu_gib: float
    nodes: int
    devices_per_node: int


@dataclass(frozen=True)
class Needs:
    """What a training holds, in bytes by item, without what surrounds the tensors.

    Attributes:
        devices: Of each device of a node, at each moment.
        offloaded: That each process keeps in host memory.
        nvme: That each process keeps on a local disk.
    """

    devices: list[Phases]
    offloaded: dict[str, int] = field(default_factory=dict)
    nvme: int = 0


class Strategy(Protocol):
    """Where weights lie, and which processes there are. One module or folder, and one row of `STRATEGIES` each.

    Attributes:
        name: As a run file has it.
    """

    name: StrategyName

    @property
    def facts(self) -> StrategyFacts:
        """What rules know of it."""
        return STRATEGIES[self.name]

    # ---- planning: pure functions

    def options(self, config: RunConfig) -> dict[str, str]:
        """The settings that a run leaves to choose among, the fastest first, not checked.

        Args:
            config: The run.

        Returns:
            Settings as JSON text, by a name for people; one empty text where there is nothing to choose.

        Raises:
            ConfigError: What the run names is not there, or cannot be read.
        """
        return {"": ""}

    def check(self, settings: str) -> list[Problem]:
        """What is wrong with settings.

        Args:
            settings: As `options` gives them.
        """
        return []

    def processes(self, devices: int) -> int:
        """Training processes of a node.

        Args:
            devices: Devices of a node.
        """
        return devices if self.facts.is_distributed else 1

    def describe(self, plan: TrainingPlan) -> str:
        """The strategy of a plan, as a note for people.

        Args:
            plan: The plan.
        """

    def short(self, plan: TrainingPlan) -> str:
        """The same in a word; empty where the method says enough.

        Args:
            plan: The plan.
        """
        return ""

    def memory(
        self, architecture: Architecture, one_pass: Pass, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """What a training holds.

        Args:
            architecture: The model.
            one_pass: What each process computes at once.
            machines: What it runs on.
            settings: As `options` gives them.
            optimizer: `training.optimizer`, or sgd.

        Returns:
            The bytes; None where the weights alone do not fit the devices of a node.
        """

    def checkpoint_bytes(self, trained: int, precision: Precision, settings: str, nodes: int) -> int:
        """The part of one checkpoint that the fullest node, the first, writes: fp32 weights and AdamW's moments.

        Args:
            trained: Parameters that train.
            precision: Of the training.
            settings: As `options` gives them.
            nodes: Machines.
        """
        return (_FP32 + _MOMENTS) * trained // nodes

    def identity(self, settings: str) -> dict[str, Any]:
        """What of the settings a checkpoint must share to be gone on from, by the key of the run file.

        Args:
            settings: As `options` gives them.
        """
        return {}

    # ---- training: in each process

    def join(self, plan: TrainingPlan) -> Rank:
        """Join the other processes of the job.

        Args:
            plan: The plan.

        Returns:
            Which of them this one is.
        """
        return distributed.join(plan.hardware.backend) if self.facts.is_distributed else distributed.current_rank()

    def load(
        self,
        model_dir: Path,
        method: TrainingMethod,
        plan: TrainingPlan,
        config: RunConfig,
        architecture: Architecture,
        start: Path | None,
    ) -> Any:
        """Load a model to where it trains, prepared by its method. Collective: every rank calls it.

        Args:
            model_dir: The base model.
            method: What trains.
            plan: The plan, with the batch as it is now.
            config: The run.
            architecture: The model's.
            start: Adapter to go on training.
        """

    def trainer_arguments(
        self, plan: TrainingPlan, config: RunConfig, model: Any, *, is_converted: bool
    ) -> dict[str, Any]:
        """Arguments for the Trainer that are this strategy's.

        Args:
            plan: The plan, with the batch as it is now.
            config: The run.
            model: What `load` returned.
            is_converted: Whether it goes on from a checkpoint that `reshard` made.
        """
        return {}

    def master_weights(self, trainer: "Trainer") -> WeightOf:
        """What gives the whole trained weight of a parameter, in the precision it is stepped in. Collective.

        Args:
            trainer: In training or after it.
        """

        def held(_: str, parameter: "torch.nn.Parameter") -> "torch.Tensor":
            return parameter.detach().float()

        return held

    def gathered_state(
        self, trainer: "Trainer", dtype: Precision, rounding: RoundingMode, seed: int
    ) -> "dict[str, torch.Tensor]":
        """The trained weights as they are saved, on rank 0; one fp32 weight at a time beside them. Collective.

        Args:
            trainer: After training.
            dtype: Type to save them in.
            rounding: How they are rounded to it.
            seed: Of stochastic rounding.
        """
        from thriftune.strategies.gathering import gathered

        return gathered(trainer, self.master_weights(trainer), dtype, rounding, seed)

    def load_trained(self, trainer: "Trainer", checkpoint: Path, *, is_converted: bool) -> None:
        """Put the weights of a checkpoint into the model of a trainer, after training. Collective.

        Args:
            trainer: After training.
            checkpoint: As the Trainer wrote it, on this disk.
            is_converted: Whether `reshard` made it.
        """
        trainer._load_from_checkpoint(str(checkpoint))  # noqa: SLF001 - as the Trainer does for its best model

    def record(self, trainer: "Trainer") -> dict[str, Any]:
        """What the manifest of a result says of the strategy.

        Args:
            trainer: After training.
        """
        return {}

    @property
    def reshard(self) -> Callable[[Path], Path] | None:
        """Makes a checkpoint of another number of ranks one for any; None: checkpoints are the same for all."""
        return None

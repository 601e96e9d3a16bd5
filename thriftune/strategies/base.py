"""The protocol of a strategy, and the types that planning passes to it."""

from collections.abc import Callable
from concurrent.futures import Future
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
from thriftune.strategies.coordination import Coordination
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.items import Phases
from thriftune.strategies.memory.weights import counts
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

_FP32, _MOMENTS = 4, 8
_OF_ONE_PROCESS = " or ".join(name for name, facts in STRATEGIES.items() if not facts.is_distributed)


@dataclass(frozen=True)
class Machines:
    """The machines that a run gets.

    Attributes:
        device: Kind of device.
        gpu_gib: Memory of each GPU as the driver shows it, in GiB; 0 on a CPU.
        nodes: Number of nodes.
        devices_per_node: GPUs of each, or worker processes on a CPU.
    """

    device: Device
    gpu_gib: float
    nodes: int
    devices_per_node: int


@dataclass(frozen=True)
class Needs:
    """Memory that a training holds, in bytes by item; only tensors, without the overhead around them.

    Attributes:
        devices: Bytes on each device of a node, at each moment.
        offloaded: Bytes that each process keeps in host memory.
        nvme: Bytes that each process keeps on a local disk.
        copied: Bytes that each process copies into host memory while it loads the model, beside one weight.
        saved: Bytes that each process copies into host memory for a checkpoint that is written while it trains on.
    """

    devices: list[Phases]
    offloaded: dict[str, int] = field(default_factory=dict)
    nvme: int = 0
    copied: int = 0
    saved: int = 0


class StateFiles(Protocol):
    """Writes and reads what trains, where no rank has all of it. Every call is collective: every rank makes it."""

    def save(self, trainer: "Trainer", folder: Path) -> Future[None]:
        """Copy weights and what the optimizer keeps, and begin to write the copies, while training goes on.

        The checkpoint before is done when this returns.

        Args:
            trainer: The trainer, at the end of a step.
            folder: Folder of the checkpoint, on the disk of this rank's node.

        Returns:
            Done when the files of all ranks are whole. Where one could not be written, it holds a ThriftuneError.
        """

    def load_weights(self, trainer: "Trainer", folder: Path) -> None:
        """Read the weights.

        Args:
            trainer: The trainer, before or after training.
            folder: Folder of the checkpoint, on the disk of this rank's node.
        """

    def load_optimizer(self, trainer: "Trainer", folder: Path) -> None:
        """Read what the optimizer keeps.

        Args:
            trainer: The trainer, with an optimizer that has not stepped.
            folder: Folder of the checkpoint, on the disk of this rank's node.
        """


class Strategy(Protocol):
    """Where weights lie, and which processes there are. Each one is a module or a folder, and a row of `STRATEGIES`.

    Attributes:
        name: The strategy's name in a run file.
    """

    name: StrategyName

    @property
    def facts(self) -> StrategyFacts:
        """What the rules of a run file know about it."""
        return STRATEGIES[self.name]

    # ---- planning: pure functions

    def options(self, config: RunConfig) -> dict[str, str]:
        """The settings that the planner may choose among, the fastest first, not checked yet.

        Args:
            config: The run.

        Returns:
            Settings as JSON text, by a name to show; one empty text where there is nothing to choose.

        Raises:
            ConfigError: The run names settings that do not exist, or that cannot be read.
        """
        return {"": ""}

    def check(self, settings: str) -> list[Problem]:
        """The problems of some settings; an empty list if there are none.

        Args:
            settings: As `options` gives them.
        """
        return []

    def processes(self, devices: int) -> int:
        """Number of training processes on a node.

        Args:
            devices: Devices of a node.
        """
        return devices if self.facts.is_distributed else 1

    def describe(self, plan: TrainingPlan) -> str:
        """The strategy of a plan, as text for a person.

        Args:
            plan: The plan.
        """

    def short(self, plan: TrainingPlan) -> str:
        """The same in one word; empty where the name of the method says enough.

        Args:
            plan: The plan.
        """
        return ""

    def written(self, settings: str) -> dict[str, str]:
        """Keys and values of a run file that lead to some settings again; empty where there is nothing to choose.

        Args:
            settings: As `options` gives them.
        """
        return {}

    def memory(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, optimizer: str
    ) -> Needs | None:
        """The memory that a training needs.

        Args:
            architecture: The model.
            step_shape: What one forward and backward pass of a process computes.
            machines: The machines it runs on.
            settings: As `options` gives them.
            optimizer: `training.optimizer`, or sgd.

        Returns:
            The bytes by item; None where the weights alone do not fit on the devices of a node.
        """

    def computed(self, step_shape: StepShape) -> StepShape:
        """A pass as this strategy computes it: in autocast, or with all weights in the precision.

        Args:
            step_shape: What one forward and backward pass of a process computes.
        """
        return step_shape

    def coordination(
        self, architecture: Architecture, step_shape: StepShape, machines: Machines, settings: str, accumulation: int
    ) -> Coordination:
        """What each device does besides computing in one optimizer step.

        Args:
            architecture: The model.
            step_shape: What one forward and backward pass of a process computes.
            machines: The machines it runs on.
            settings: As `options` gives them.
            accumulation: Forward and backward passes in one optimizer step.
        """
        return Coordination(updated=counts(architecture, step_shape.tuned).trained)

    def checkpoint_bytes(self, trained: int, precision: Precision, settings: str, nodes: int) -> int:
        """Bytes of one checkpoint that the first node writes, which writes most: fp32 weights and AdamW's moments.

        Args:
            trained: Number of parameters that train.
            precision: Precision of the training.
            settings: As `options` gives them.
            nodes: Number of nodes.
        """
        return (_FP32 + _MOMENTS) * trained // nodes

    def identity(self, settings: str) -> dict[str, Any]:
        """The settings that a checkpoint must have too for a run to resume from it, by their key in the run file.

        Strategies of one process write what trains as whole files, which each of them reads.

        Args:
            settings: As `options` gives them.
        """
        return {"strategy": _OF_ONE_PROCESS}

    # ---- training: in each process

    def join(self, plan: TrainingPlan) -> Rank:
        """Join the other processes of the job.

        Args:
            plan: The plan.

        Returns:
            The rank of this process.
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
        """Load a model onto the devices it trains on, prepared by its method. Collective: every rank calls it.

        Args:
            model_dir: The base model.
            method: The method, which prepares the model.
            plan: The plan, with the batch as it is now.
            config: The run.
            architecture: The model's.
            start: Adapter to continue training; None if there is none.
        """

    def trainer_arguments(
        self, plan: TrainingPlan, config: RunConfig, model: Any, *, is_converted: bool
    ) -> dict[str, Any]:
        """The Trainer's arguments that depend on the strategy.

        Args:
            plan: The plan, with the batch as it is now.
            config: The run.
            model: What `load` returned.
            is_converted: Whether it resumes from a checkpoint that `reshard` made.
        """
        return {}

    def master_weights(self, trainer: "Trainer") -> WeightOf:
        """A function that gives a parameter's whole weight, in the precision that the optimizer updates. Collective.

        It takes the parameter's name and the parameter, and returns a tensor of the parameter's full shape.

        Args:
            trainer: The trainer, during or after training.
        """

        def held(_: str, parameter: "torch.nn.Parameter") -> "torch.Tensor":
            return parameter.detach().float()

        return held

    def gathered_state(
        self, trainer: "Trainer", dtype: Precision, rounding: RoundingMode, seed: int
    ) -> "dict[str, torch.Tensor]":
        """The trained weights as they are saved, on rank 0; only one at a time is also held in fp32. Collective.

        Args:
            trainer: The trainer, after training.
            dtype: Type to save them in.
            rounding: How to round them to it.
            seed: Seed of stochastic rounding.
        """
        from thriftune.strategies.gathering import gathered

        return gathered(trainer, self.master_weights(trainer), dtype, rounding, seed)

    def load_trained(self, trainer: "Trainer", checkpoint: Path, *, is_converted: bool) -> None:
        """Put the weights of a checkpoint into the model of a trainer, after training. Collective.

        Args:
            trainer: The trainer, after training.
            checkpoint: As the Trainer wrote it, on this disk.
            is_converted: Whether `reshard` made it.
        """
        trainer._load_from_checkpoint(str(checkpoint))  # noqa: SLF001 - as the Trainer does for its best model

    def record(self, trainer: "Trainer") -> dict[str, Any]:
        """What the manifest of a result says about the strategy.

        Args:
            trainer: The trainer, after training.
        """
        return {}

    @property
    def state_files(self) -> StateFiles | None:
        """Writes and reads what trains in a checkpoint; None where transformers' Trainer does, or DeepSpeed for it."""
        return None

    @property
    def reshard(self) -> Callable[[Path], Path] | None:
        """Converts a checkpoint to one that any number of ranks can load; None if every checkpoint is one already."""
        return None

"""The protocol of a training method, and what a training gives it to save."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.config import Method, RunConfig, Section
from thriftune.config.choices import METHODS, MethodFacts
from thriftune.hardware import Precision
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.models.rounding import RoundingMode
from thriftune.models.saving import SavedWeights

if TYPE_CHECKING:
    import torch

# Tensors by the names of a model's arguments, such as input_ids.
Batch = Mapping[str, "torch.Tensor"]
# Gathers the trained weights, rounded to a type by a rounding mode: whole tensors by name on rank 0, none elsewhere.
# Collective: every rank calls it.
State = Callable[[Precision, RoundingMode], "dict[str, torch.Tensor]"]


@dataclass(frozen=True)
class Trained:
    """A trained model that is about to be saved, in each process of the training.

    Attributes:
        model: The model as the Trainer holds it.
        model_dir: The base model.
        state: Gathers the trained weights.
        saved: How to save them, as the measurement decided; None where nothing was measured.
        record: What the manifest says about the run.
    """

    model: Any
    model_dir: Path
    state: State
    saved: SavedWeights | None
    record: dict[str, Any]


class TrainingMethod(Protocol):
    """What trains, and what comes out. Each method is one module and one row of `thriftune.methods.METHODS`.

    Attributes:
        name: The method's name in a run file.
    """

    name: Method

    @property
    def facts(self) -> MethodFacts:
        """What the rules of a run file know about it."""
        return METHODS[self.name]

    def section(self, config: RunConfig) -> Section | None:
        """The method's section of the run file, or its defaults: what trains, as far as the file decides it.

        Args:
            config: The run.

        Returns:
            A value that planning passes to `trained_parts` and `put_on`; None where every weight trains.
        """
        name = self.facts.section
        return getattr(config, f"{name}_or_default") if name else None

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """How the base model is quantized to 4 bits; None where it is not.

        Args:
            config: The run.
        """

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse a model that this method cannot train, or an adapter that it cannot continue. Loads no model.

        Args:
            config: The run.
            architecture: Its model's.
            start: Adapter to continue training, on this disk; None if there is none, or if it is not on this disk.

        Raises:
            ConfigError: With the reason.
            AdapterError: The adapter was not made for this model.
        """

    def remarks(self, config: RunConfig, architecture: Architecture) -> list[str]:
        """Sentences about what trains that the run file alone does not show; most methods have none.

        Args:
            config: The run, which `check` has accepted.
            architecture: Its model's.
        """
        return []

    def planned(self, config: RunConfig, architecture: Architecture) -> tuple[Section | None, Architecture]:
        """What is planned with: the section about what trains, and the model that trains.

        Args:
            config: The run, which `check` has accepted.
            architecture: Its base model's; another one comes back where a method adds to it.
        """
        return self.section(config), architecture

    def traced_as(self, section: Section | None, architecture: Architecture) -> tuple[Section | None, ...]:
        """For each decoder layer, what trains in a model all of whose layers are like it, to trace a few of them.

        Args:
            section: What `planned` returned.
            architecture: What `planned` returned.
        """
        return (section,) * len(architecture.layer_kinds)

    def trained_parts(self, section: Section | None, architecture: Architecture) -> Mapping[str, int]:
        """Number of parameters that train, by the module of the base model that they are in or on.

        Args:
            section: What `section` returned.
            architecture: The model's.

        Raises:
            ConfigError: The model cannot be trained in this way.
        """

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """Freeze what does not train, and add what is new. On the meta device it gets models of fewer layers, too.

        Args:
            model: The base model; in 4 bits already if `four_bit` says so.
            section: What `section` returned, or on the meta device one of those that `traced_as` returned.
            architecture: The architecture of the whole model.

        Returns:
            The model whose `requires_grad` parameters train.
        """

    def trained_parameters(self, config: RunConfig, architecture: Architecture) -> int:
        """Parameters that training changes.

        Args:
            config: The run.
            architecture: Its model's.
        """
        return sum(self.trained_parts(self.section(config), architecture).values())

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """The settings of the run file that decide what this method trains, by key; values as in JSON.

        Args:
            config: The run.
        """

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Make a loaded model, which `check` has accepted, ready to train.

        Args:
            model: The base model, as its strategy holds it.
            config: The run.
            architecture: The model's.
            start: Adapter to continue training; None if there is none.

        Returns:
            The model whose `requires_grad` parameters train.
        """

    def begin(self, model: Any, config: RunConfig, batches: Callable[[int, int], Sequence[Batch]]) -> None:
        """Give what trains its first values, where these are not what `prepare` gave it. Not called on resuming.

        Args:
            model: What `prepare` returned, on its devices.
            config: The run.
            batches: Gives batches of collated rows, the same on every rank; takes their number, and the tokens with a
                label that each has at least.

        Raises:
            ConfigError: There are too few rows.
        """
        return

    def beside(self, model: Any) -> "dict[str, torch.Tensor]":
        """What a checkpoint needs besides what peft or transformers saves of a model, by name.

        Args:
            model: The model that trains.
        """
        return {}

    def take(self, model: Any, tensors: "Mapping[str, torch.Tensor]") -> bool:
        """Take back what `beside` gave, before the rest of a checkpoint is loaded.

        Args:
            model: The model that resumes.
            tensors: What `beside` gave; empty if the checkpoint has nothing of it.

        Returns:
            Whether that was everything that trains, so that nothing else is to be loaded into the model.
        """
        return False

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write what was trained to a directory, with a manifest. Collective: every rank calls it, rank 0 writes.

        Args:
            trained: The trained model.
            config: The run.
            destination: Directory to create.
        """

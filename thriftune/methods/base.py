"""The protocol of a training method, and what a training gives it to save."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.config import LoraConfig, Method, RunConfig
from thriftune.config.choices import METHODS, MethodFacts
from thriftune.hardware import Precision
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit
from thriftune.models.rounding import RoundingMode
from thriftune.models.saving import SavedWeights

if TYPE_CHECKING:
    import torch

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

    def adapters(self, config: RunConfig) -> LoraConfig | None:
        """The adapters that train in place of the weights; None where the weights themselves train.

        Args:
            config: The run.
        """

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

    def trained_parameters(self, config: RunConfig, architecture: Architecture) -> int:
        """Parameters that training changes.

        Args:
            config: The run.
            architecture: Its model's.
        """

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

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write what was trained to a directory, with a manifest. Collective: every rank calls it, rank 0 writes.

        Args:
            trained: The trained model.
            config: The run.
            destination: Directory to create.
        """

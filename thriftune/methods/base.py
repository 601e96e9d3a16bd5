"""What every method answers, and what a training hands to it to save."""

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

# Gathers what was trained, in a type and rounded to it in a way: whole tensors by name on rank 0, none elsewhere.
# Collective: every rank calls it.
State = Callable[[Precision, RoundingMode], "dict[str, torch.Tensor]"]


@dataclass(frozen=True)
class Trained:
    """A trained model on its way to a directory, in each process of the training.

    Attributes:
        model: As the Trainer holds it.
        model_dir: The base model.
        state: Gathers the trained weights.
        saved: How they are saved, as measured; None where nothing was measured.
        record: What the manifest says of the run.
    """

    model: Any
    model_dir: Path
    state: State
    saved: SavedWeights | None
    record: dict[str, Any]


class TrainingMethod(Protocol):
    """What trains, and what comes out. One module and one row of `thriftune.methods.METHODS` each.

    Attributes:
        name: As a run file has it.
    """

    name: Method

    @property
    def facts(self) -> MethodFacts:
        """What rules know of it."""
        return METHODS[self.name]

    def adapters(self, config: RunConfig) -> LoraConfig | None:
        """The adapters that train in place of the weights; None where the weights do.

        Args:
            config: The run.
        """

    def four_bit(self, config: RunConfig) -> FourBit | None:
        """How the base model is in 4 bits; None where it is not.

        Args:
            config: The run.
        """

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse a model that it cannot train, and an adapter that it cannot go on from. Loads no model.

        Args:
            config: The run.
            architecture: Its model's.
            start: Adapter to go on training, on this disk; None: none, or it is not here.

        Raises:
            ConfigError: With the reason.
            AdapterError: The adapter is not one of this model.
        """

    def trained_parameters(self, config: RunConfig, architecture: Architecture) -> int:
        """Parameters that training changes.

        Args:
            config: The run.
            architecture: Its model's.
        """

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """What of the run file decides this method's training, by the key that decides it; values as JSON has them.

        Args:
            config: The run.
        """

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Make a loaded model ready to train, that `check` found nothing wrong with.

        Args:
            model: The base model, as its strategy holds it.
            config: The run.
            architecture: The model's.
            start: Adapter to go on training; None: none.

        Returns:
            The model whose `requires_grad` parameters train.
        """

    def save(self, trained: Trained, config: RunConfig, destination: Path) -> None:
        """Write what was trained to a directory, with a manifest. Collective: every rank calls it, rank 0 writes.

        Args:
            trained: What came out.
            config: The run.
            destination: Directory to make.
        """

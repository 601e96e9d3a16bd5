"""What saving would do to a full fine-tuning, measured where the model is: sharded over the ranks, by all of them."""

import logging
import time
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.hardware import Precision, torch_dtype
from thriftune.models import saving
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.saving import SavedWeights
from thriftune.models.substitution import WeightOf, computing_with
from thriftune.strategies.zero.masters import masters_of
from thriftune.training.held_out import held_out_loss

if TYPE_CHECKING:
    from datasets import Dataset

    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

# Among the trainer's notes, which every checkpoint holds: nats, or None where the model cannot be measured.
_BASE_LOSS = "base_loss"


class Measuring:
    """The held-out loss of a model that DeepSpeed trains, with the weights that would be saved. Collective throughout.

    Args:
        trainer: Of the training.
        rows: Held-out rows; as many are computed at once as train.
    """

    def __init__(self, trainer: "ResumableTrainer", rows: "Dataset") -> None:
        self._trainer, self._rows = trainer, rows

    def note_base_loss(self) -> None:
        """Measure before the first step, while the master weights are the base model's.

        That also tells, before its training is paid for, whether a model can be measured: not if its code multiplies
        with the weight of another module than the one that runs, which is in 16 bits still (Jamba's convolutions).
        """
        import torch

        model: Any = self._trainer.model
        was_training, started = model.training, time.monotonic()
        try:
            self._trainer.notes[_BASE_LOSS] = self._loss(self._masters())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of types that do not match, and so on every rank alike
            logger.warning("What rounding does to this model's loss cannot be measured: %s", error)
            self._trainer.notes[_BASE_LOSS] = None
        model.train(was_training)
        self._trainer.seconds_beside += time.monotonic() - started

    def decide(self, dtype: Precision, seed: int, *, or_fp32: bool) -> SavedWeights | None:
        """Measure what rounding would do to the trained model, and decide how to save it.

        Args:
            dtype: Type to save it in.
            seed: Of stochastic rounding.
            or_fp32: Whether fp32 may be saved in its place.

        Returns:
            How to save it; None where that cannot be measured.
        """
        base_loss = self._trainer.notes.get(_BASE_LOSS)
        if base_loss is None:
            return None
        master = self._masters()

        def loss_of(dtype: Precision, mode: RoundingMode) -> float:
            return self._loss(lambda n, p: rounded(master(n, p), torch_dtype(dtype), mode, n, seed).float())

        return saving.decide(
            dtype, len(self._rows), float(base_loss), lambda: self._loss(master), loss_of, or_fp32=or_fp32
        )

    def _masters(self) -> WeightOf:
        return masters_of(self._trainer.deepspeed)

    def _loss(self, weight_of: WeightOf) -> float:
        model: Any = self._trainer.model
        tokenizer: Any = self._trainer.processing_class
        model.eval()
        with computing_with(model, weight_of):
            batch = self._trainer.args.per_device_train_batch_size
            return held_out_loss(model, tokenizer, self._rows, batch, distributed.current_rank())[0]

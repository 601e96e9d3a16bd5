"""Measure what rounding would do to trained weights, on the model as it is sharded over the ranks."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.hardware import Precision, torch_dtype
from thriftune.models import saving
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.saving import SavedWeights
from thriftune.models.substitution import WeightOf, computing_with
from thriftune.strategies import Strategy
from thriftune.training.held_out import held_out_loss
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset

    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

# Key in the trainer's notes, which every checkpoint holds: nats, or None where the model cannot be measured.
_BASE_LOSS = "base_loss"


class Measuring:
    """Held-out loss of a model whose own weights train, with the weights that would be saved. Every call is collective.

    Weights that do not train are rounded too, to the nearest number, where the result has them in fewer bits.

    Args:
        trainer: The trainer, with the model.
        rows: Held-out rows; the batch is that of a validation.
        strategy: Gives the weights that the optimizer updates.
    """

    def __init__(self, trainer: "ResumableTrainer", rows: "Dataset", strategy: Strategy) -> None:
        self._trainer, self._rows, self._strategy = trainer, rows, strategy

    def note_base_loss(self, known: float | None) -> None:
        """Measure before the first step, while the master weights are those of the base model.

        Args:
            known: The loss, if it was measured with the master weights themselves, as in fp32; None if it was not.

        This also shows, before the training has cost anything, whether a model can be measured. It cannot if its code
        uses the weight of another module than the one that runs, which is still in 16 bits (Jamba's convolutions).
        """
        import torch

        if known is not None:
            self._trainer.notes[_BASE_LOSS] = known
            return
        model: Any = self._trainer.model
        was_training, started = model.training, time.monotonic()
        try:
            self._trainer.notes[_BASE_LOSS] = self._loss(self._masters())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # types do not match, which happens on every rank alike
            logger.warning("What rounding does to this model's loss cannot be measured: %s", error)
            self._trainer.notes[_BASE_LOSS] = None
        model.train(was_training)
        self._trainer.seconds_beside += time.monotonic() - started

    def decide(self, config: RunConfig, plan: TrainingPlan, model_dir: Path) -> SavedWeights | None:
        """Measure what rounding would do to the trained model, and decide how to save it.

        Args:
            config: The run.
            plan: Its plan.
            model_dir: The base model, whose type the weights are saved in after training in fp32.

        Returns:
            How to save it; None where nothing is measured: the weights are saved in fp32 anyway, or the model cannot
            be measured.
        """
        from transformers import AutoConfig

        asked = config.training.save_dtype
        if asked == "fp32":
            return None
        if asked != "auto":
            return self._decide(asked, config.seed, or_fp32=False)
        stored = AutoConfig.from_pretrained(model_dir, trust_remote_code=config.model.trust_remote_code).dtype
        model: Any = self._trainer.model
        if all(parameter.requires_grad for parameter in model.parameters()):
            return self._decide(saving.sixteen_bits(plan.precision, str(stored)), config.seed, or_fp32=True)
        kept = saving.lossless(str(stored))
        return None if kept == "fp32" else self._decide(kept, config.seed, or_fp32=True)

    def _decide(self, dtype: Precision, seed: int, *, or_fp32: bool) -> SavedWeights | None:
        """Measure what rounding would do to the trained model, and decide how to save it.

        Args:
            dtype: Type to save it in.
            seed: Seed of stochastic rounding.
            or_fp32: Whether fp32 may be saved instead.

        Returns:
            How to save it; None where the model cannot be measured.
        """
        base_loss = self._trainer.notes.get(_BASE_LOSS)
        if base_loss is None:
            return None
        master = self._masters()

        def loss_of(dtype: Precision, mode: RoundingMode) -> float:
            return self._loss(
                lambda n, p: rounded(master(n, p), torch_dtype(dtype), saving.mode_of(p, mode), n, seed).float()
            )

        return saving.decide(
            dtype, len(self._rows), float(base_loss), lambda: self._loss(master), loss_of, or_fp32=or_fp32
        )

    def _masters(self) -> WeightOf:
        return self._strategy.master_weights(self._trainer)

    def _loss(self, weight_of: WeightOf) -> float:
        model: Any = self._trainer.model
        tokenizer: Any = self._trainer.processing_class
        model.eval()
        with _without_autocast(model), computing_with(model, weight_of):
            batch, objective = self._trainer.args.per_device_eval_batch_size, self._trainer.objective
            return held_out_loss(model, tokenizer, self._rows, batch, distributed.current_rank(), objective)[0]


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Compute in the type of the weights, also where accelerate (1.15) put autocast around a model's `forward`.

    In 16 bits it would round the weights that are measured, before and after rounding alike.
    """
    wrapped, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if original is not None:
        model.forward = original
    try:
        yield
    finally:
        if original is not None:
            model.forward = wrapped

"""Validate a model where it trains: held-out loss and answers of a sharded, split or 4-bit model, by all ranks."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.data.prepared import load_samples
from thriftune.data.questions import encode_prompt
from thriftune.models.separation import require_separation
from thriftune.training.general import GeneralLoss
from thriftune.training.held_out import EvalReport, RowLosses, held_out_rows, row_losses
from thriftune.training.result import HELD_OUT_LOSS, Validation, logged_validations

if TYPE_CHECKING:
    from transformers import TrainerState

    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

# Number of validations if the run's file does not set the interval.
_USUAL_NUMBER = 10
# Key in the trainer's notes, which every checkpoint holds.
_BEFORE = "before"


class Validator:
    """Measures the model of a training. Every method that measures is collective: every rank calls it.

    Args:
        trainer: The trainer, with the model.
        config: The run.
        dataset_dir: The prepared dataset.
        on_batch: Called after each batch of rows or answers, to show that the process makes progress.
    """

    def __init__(
        self,
        trainer: "ResumableTrainer",
        config: RunConfig,
        dataset_dir: Path,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._trainer, self._config, self._dataset_dir, self._on_batch = trainer, config, dataset_dir, on_batch
        self.rows = held_out_rows(dataset_dir, config.evaluation.max_rows)
        self._general: GeneralLoss | None = None
        if config.evaluation.watch_general:
            tokenizer: Any = trainer.processing_class
            self._general = GeneralLoss(tokenizer, config.data.max_length)
        self._measured: tuple[int, RowLosses] | None = None

    def is_due(self, state: "TrainerState") -> bool:
        """Whether to measure the loss after a step: at regular intervals, and after the last step.

        Args:
            state: The Trainer's state.
        """
        step, every = state.global_step, self._config.evaluation.every_steps
        if step >= state.max_steps:
            return True
        if every:
            return step % every == 0
        # At each tenth of the steps, so that there are never more than ten.
        return step * _USUAL_NUMBER // state.max_steps > (step - 1) * _USUAL_NUMBER // state.max_steps

    def begin(self) -> RowLosses:
        """Measure the model before its first step, and note it for the result.

        Returns:
            The loss of each row.

        Raises:
            ConfigError: The model trains on packed rows, but cannot keep their examples apart.
        """
        with self._evaluating() as model:
            if self._config.data.packing:
                require_separation(model)
        losses = self.losses()
        self._trainer.notes[_BEFORE] = asdict(self.report(losses))
        return losses

    def before(self) -> EvalReport | None:
        """What `begin` measured, in this attempt or in the one that it resumes from; None if that is not known.

        Without answers, if those are to other prompts than the run now has.
        """
        noted = self._trainer.notes.get(_BEFORE)
        if not noted:
            return None
        report = EvalReport(**noted)
        prompts, _ = questions(self._dataset_dir, self._config, self._trainer.processing_class)
        return report if report.prompts == prompts else replace(report, prompts=[], answers=[])

    def measured(self, step: int) -> RowLosses | None:
        """The last measurement, if it was made at a step; else None.

        Args:
            step: Optimizer steps done.
        """
        return self._measured[1] if self._measured and self._measured[0] == step else None

    def losses(self, *, is_logged: bool = True) -> RowLosses:
        """Measure the held-out rows, and the general questions where the run watches them.

        Args:
            is_logged: Whether to log the loss as that of the present step.
        """
        tokenizer: Any = self._trainer.processing_class
        with self._evaluating() as model:
            batch = self._trainer.args.per_device_eval_batch_size
            rank, objective = distributed.current_rank(), self._trainer.objective
            losses = row_losses(model, tokenizer, self.rows, batch, rank, self._on_batch, objective)
            if self._general is not None:
                general = self._general.measure(model, batch, rank, self._on_batch)
                losses = replace(losses, general_loss=general.mean)
        if is_logged:
            self._measured = (self._trainer.state.global_step, losses)
            self._log(losses)
        return losses

    def _log(self, losses: RowLosses) -> None:
        """Log the held-out loss, without the Trainer taking the step's training loss for logged (transformers 5.23)."""
        is_due = self._trainer.control.should_log
        self._trainer.log({HELD_OUT_LOSS: losses.mean, **losses.logged})
        self._trainer.control.should_log = is_due

    def report(self, losses: RowLosses) -> EvalReport:
        """A report of losses, with answers of the model as it is now.

        Args:
            losses: The losses of the model.
        """
        prompts, answers = self._answers()
        return EvalReport.of(losses, prompts, answers)

    def ranked(self) -> list[Validation]:
        """The validations of trained weights so far, the lowest loss first; of equal losses, the earlier first.

        Without that before the first step: the base model is no result.
        """
        trained = [validation for validation in logged_validations(self._trainer.state) if validation.step]
        return sorted(trained, key=lambda validation: validation.rank)

    def lowest(self) -> Validation:
        """The validation with the lowest loss so far, which may be that before the first step."""
        return min(logged_validations(self._trainer.state), key=lambda validation: validation.rank)

    def without_improvement(self) -> int:
        """Number of validations since the one with the lowest loss."""
        losses = [validation.rank for validation in logged_validations(self._trainer.state)]
        return len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__) if losses else 0

    def _answers(self) -> tuple[list[str], list[str]]:
        """Prompts and the model's answers: the run's own prompts, or those of the first held-out rows."""
        tokenizer: Any = self._trainer.processing_class
        evaluation, batch = self._config.evaluation, self._trainer.args.per_device_eval_batch_size
        prompts, encoded = questions(self._dataset_dir, self._config, tokenizer)
        answers = []
        with self._evaluating() as model:
            longest, objective = evaluation.max_new_tokens, self._trainer.objective
            for answer in objective.answers(model, tokenizer, encoded, longest, batch):
                answers.append(answer)
                self._on_batch()
        return prompts, answers

    @contextmanager
    def _evaluating(self) -> Iterator[Any]:
        """Put the model in evaluation mode, with the autocast of the training; the time does not count as training."""
        model: Any = self._trainer.model
        was_training, started = model.training, time.monotonic()
        model.eval()
        try:
            with self._trainer.accelerator.autocast():
                yield model
        finally:
            model.train(was_training)
            self._trainer.seconds_beside += time.monotonic() - started


def questions(dataset_dir: Path, config: RunConfig, tokenizer: Any) -> tuple[list[str], list[list[int]]]:
    """The prompts to answer before and after training, as texts and as token ids.

    Args:
        dataset_dir: A prepared dataset.
        config: The run; if it has no prompts of its own, those of the first held-out rows are used.
        tokenizer: The model's tokenizer.
    """
    if config.evaluation.prompts:
        prompts, style = list(config.evaluation.prompts), config.data.prompt_format
        return prompts, [encode_prompt(prompt, tokenizer, style) for prompt in prompts]
    samples = load_samples(dataset_dir)
    return [sample["question"] for sample in samples], [sample["input_ids"] for sample in samples]

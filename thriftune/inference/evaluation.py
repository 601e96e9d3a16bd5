"""Measure a finished model on held-out rows: its loss, what that means, and answers to read."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig
from thriftune.models.classifier import Classes
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.general import GeneralLoss
from thriftune.training.held_out import EvalReport, held_out_rows, row_losses
from thriftune.training.objective import objective_of
from thriftune.training.validation import questions

logger = logging.getLogger(__name__)


def evaluate(
    model_dir: Path, dataset_dir: Path, config: RunConfig, placement: Placement, adapter_dir: Path | None = None
) -> EvalReport:
    """Load a model, and measure it on the held-out rows of a prepared dataset in the same way as a validation.

    Args:
        model_dir: The model.
        dataset_dir: A prepared dataset, made with this model's tokenizer.
        config: The run, which says how much to measure.
        placement: How to hold the model.
        adapter_dir: An adapter to put on it; None if there is none.

    Returns:
        The report.
    """
    trust, evaluation = config.model.trust_remote_code, config.evaluation
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust)
    base = load_model(model_dir, placement, trust_remote_code=trust, classes=Classes.of(config))
    model: Any = attach_adapters(base, {"default": adapter_dir} if adapter_dir else {})
    model.eval()
    rows = held_out_rows(dataset_dir, evaluation.max_rows)
    objective = objective_of(config.labels)
    losses = row_losses(model, tokenizer, rows, evaluation.batch, objective=objective)
    if evaluation.watch_general:
        general = GeneralLoss(tokenizer, config.data.max_length)
        losses = replace(losses, general_loss=general.measure(model, evaluation.batch).mean)
    prompts, encoded = questions(dataset_dir, config, tokenizer)
    answers = list(objective.answers(model, tokenizer, encoded, evaluation.max_new_tokens, evaluation.batch))
    report = EvalReport.of(losses, prompts, answers)
    logger.info("Held-out loss %.4f (%s) over %s", report.loss, report.quality, report.counted)
    return report

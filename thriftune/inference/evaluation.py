"""Measure a finished model on held-out rows: loss per trained token, perplexity, and answers to read."""

import logging
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig
from thriftune.models.answering import Sampling, complete
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import EvalReport, held_out_loss, held_out_rows
from thriftune.training.validation import perplexity_of, questions

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
    base = load_model(model_dir, placement, trust_remote_code=trust)
    model: Any = attach_adapters(base, {"default": adapter_dir} if adapter_dir else {})
    model.eval()
    rows = held_out_rows(dataset_dir, evaluation.max_rows)
    loss, tokens = held_out_loss(model, tokenizer, rows, evaluation.batch)
    prompts, encoded = questions(dataset_dir, config, tokenizer)
    answers = list(complete(model, tokenizer, encoded, Sampling(evaluation.max_new_tokens), evaluation.batch))
    logger.info("Held-out loss %.4f (perplexity %.2f) over %d tokens", loss, perplexity_of(loss), tokens)
    return EvalReport(loss, perplexity_of(loss), tokens, prompts, answers)

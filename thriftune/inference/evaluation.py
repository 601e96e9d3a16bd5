"""How good a model is on held-out rows: loss per trained token, perplexity, and answers to read."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.config import DataFormat, EvaluationConfig
from thriftune.data.prepared import load_samples
from thriftune.inference.generation import Sampling, complete, encode_prompt
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.separation import require_separation
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import held_out_loss, held_out_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_LARGEST_EXPONENT = 700  # exp() of more overflows a float


@dataclass(frozen=True)
class EvalReport:
    """What was measured of one model.

    Attributes:
        loss: Mean negative log-likelihood per trained token of the held-out rows, in nats.
        perplexity: exp(loss).
        tokens: Tokens that the mean is over.
        prompts: Questions asked.
        answers: What the model answered to each.
    """

    loss: float
    perplexity: float
    tokens: int
    prompts: list[str]
    answers: list[str]


def evaluate(
    model_dir: Path,
    dataset_dir: Path,
    config: EvaluationConfig,
    *,
    style: DataFormat,
    placement: Placement,
    adapter_dir: Path | None = None,
    packing: bool = False,
    trust_remote_code: bool = False,
) -> EvalReport:
    """Measure a model on the held-out rows of a prepared dataset.

    Args:
        model_dir: The model.
        dataset_dir: A prepared dataset, made with this model's tokenizer.
        config: How much to measure.
        style: How prompts are put to the model: the format it trains on.
        placement: How to hold the model.
        adapter_dir: An adapter to put on it.
        packing: Whether it is trained on packed rows.
        trust_remote_code: Run model code that the model ships.

    Returns:
        The report.

    Raises:
        ConfigError: It is trained on packed rows, and cannot keep their examples apart.
    """
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    base = load_model(model_dir, placement, trust_remote_code=trust_remote_code)
    model = attach_adapters(base, {"default": adapter_dir} if adapter_dir else {})
    model.eval()
    if packing:
        require_separation(model)
    loss, tokens = held_out_loss(model, tokenizer, held_out_rows(dataset_dir, config.max_rows), config.batch)
    prompts, encoded = _questions(dataset_dir, config, tokenizer, style)
    answers = list(complete(model, tokenizer, encoded, Sampling(config.max_new_tokens), config.batch))
    perplexity = math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf
    logger.info("Held-out loss %.4f (perplexity %.2f) over %d tokens", loss, perplexity, tokens)
    return EvalReport(loss, perplexity, tokens, prompts, answers)


def _questions(
    dataset_dir: Path, config: EvaluationConfig, tokenizer: "PreTrainedTokenizerBase", style: DataFormat
) -> tuple[list[str], list[list[int]]]:
    if config.prompts:
        return list(config.prompts), [encode_prompt(p, tokenizer, style) for p in config.prompts]
    samples = load_samples(dataset_dir)
    return [s["question"] for s in samples], [s["input_ids"] for s in samples]

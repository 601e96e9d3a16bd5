"""How good a model is on held-out rows: loss per trained token, perplexity, and answers to read."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.config import DataFormat, EvaluationConfig
from thriftune.data.prepared import VALIDATION, load_samples, load_split
from thriftune.data.tokenization import IGNORED
from thriftune.distributed import Rank
from thriftune.inference.generation import Sampling, complete, encode_prompt
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.separation import require_separation
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.collation import PaddingCollator

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ALONE = Rank(index=0, local_index=0, world_size=1)
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


def held_out_rows(dataset_dir: Path, at_most: int) -> "Dataset":
    """The held-out rows of a prepared dataset, or as many of them, chosen at random, and always the same ones.

    Args:
        dataset_dir: A prepared dataset.
        at_most: Number of rows.
    """
    rows = load_split(dataset_dir, VALIDATION)
    if len(rows) <= at_most:
        return rows
    return rows.shuffle(seed=0, keep_in_memory=True).select(range(at_most))  # sources are often sorted


def held_out_loss(
    model: Any, tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", batch: int, rank: Rank = _ALONE
) -> tuple[float, int]:
    """Loss per trained token: summed over all rows and divided once, so that no batch weighs more than its tokens.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, for padding.
        rows: Rows with input_ids and labels, each a list of `length` ints.
        batch: Rows per forward pass.
        rank: Where this process stands among those that share the rows; each of them runs the model as often.

    Returns:
        Mean loss in nats and the number of tokens it is over, over all ranks.
    """
    import torch

    collate = PaddingCollator(tokenizer)
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    batches = [by_length[start : start + batch] for start in range(0, len(rows), batch)]
    for first in range(0, len(batches), rank.world_size):
        mine = first + rank.index
        part = batches[min(mine, len(batches) - 1)]
        inputs = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in part]).items()}
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        if mine < len(batches):  # else another rank has counted it
            total += float(loss)
            tokens += int((labels != IGNORED).sum())
    if rank.world_size > 1:
        totals, counts = zip(*distributed.gather_objects((total, tokens)), strict=True)
        total, tokens = sum(totals), sum(counts)
    return total / tokens, tokens


def _questions(
    dataset_dir: Path, config: EvaluationConfig, tokenizer: "PreTrainedTokenizerBase", style: DataFormat
) -> tuple[list[str], list[list[int]]]:
    if config.prompts:
        return list(config.prompts), [encode_prompt(p, tokenizer, style) for p in config.prompts]
    samples = load_samples(dataset_dir)
    return [s["question"] for s in samples], [s["input_ids"] for s in samples]

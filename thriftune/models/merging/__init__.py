"""Merging an adapter into the unquantized base model: an ordinary model that loads without this package.

The base's weights stay in its files, and one of them is in memory at a time, in fp32 with the adapter's part. Models
that transformers converts while it loads them (fused experts) are held as a whole: docs/merging.md.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from thriftune import artifacts, damage
from thriftune.hardware import torch_dtype
from thriftune.models.classifier import Classes
from thriftune.models.merging import comparing, mapped
from thriftune.models.merging.comparing import HeldOutRows, MergedWeights, Way
from thriftune.models.merging.mapped import Mapped
from thriftune.models.merging.shards import InShards, layout_of
from thriftune.models.merging.sums import Sums, is_of_single_weights, put_on
from thriftune.models.merging.whole import AsAWhole
from thriftune.models.rounding import RoundingMode
from thriftune.models.saving import SaveDtype
from thriftune.models.stopping import save_tokenizer
from thriftune.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def merge(
    model_dir: Path,
    adapter_dir: Path,
    destination: Path,
    *,
    held_out: HeldOutRows | None = None,
    tied: float = 0.0,
    save_dtype: SaveDtype = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
    classes: Classes | None = None,
) -> MergedWeights | None:
    """Add an adapter's weights to those of the base model, and save the sum.

    The base is used unquantized: adding to dequantized NF4 weights would keep their rounding errors.

    Args:
        model_dir: Base model.
        adapter_dir: Adapter.
        destination: Model directory to create.
        held_out: Rows on which the sum is compared with the adapter on the same base; if None, the sum is rounded to
            the nearest numbers and not compared.
        tied: Tokens that the adapter on its base holds likely within so many nats count as equally likely there.
        save_dtype: Precision of the saved weights; `auto` keeps the base model's.
        seed: Seed of stochastic rounding.
        trust_remote_code: Run model code that the model ships.
        classes: Classes of the classifier that the adapter makes of it; None for a causal language model.

    Returns:
        What was measured on the held-out rows; None without them.

    Raises:
        ModelSourceError: Some weights of the base model are missing.
        AdapterError: The adapter is incomplete, made for another model, or of a kind that cannot be merged.
        UserError: The adapter is damaged.
    """
    damage.require_undamaged(adapter_dir, "adapter", content=True)
    load = partial(mapped.load, trust_remote_code=trust_remote_code, classes=classes)
    way = _way(partial(load, model_dir), model_dir, adapter_dir, save_dtype, seed)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    with artifacts.writing(destination, "saving the merged model", way.size) as directory:

        def write(mode: RoundingMode) -> None:
            way.write(directory, mode)
            save_tokenizer(tokenizer, directory)

        compared = comparing.written_as_trained(way, held_out, write, partial(load, directory), tied)
        # The whole record of the run that made the adapter, if this package made it.
        record = artifacts.read_content(adapter_dir) if artifacts.is_whole(adapter_dir) else {}
        content = {**record, "merged_from": "adapter", "merging": asdict(compared) if compared else None}
        artifacts.write_manifest(directory, "model", content)
    return compared


def _way(load: Callable[..., Mapped], model_dir: Path, adapter_dir: Path, save_dtype: SaveDtype, seed: int) -> Way:
    """How to merge an adapter: weight by weight, unless the weights of the model are not those of its files."""
    base = load()
    target = torch_dtype(save_dtype) if save_dtype != "auto" else mapped.asked_dtype(model_dir, base.stored)
    layout = layout_of(base)
    sums = put_on(base.model, adapter_dir)
    base.find_ranges()
    logger.info("Merging %s into %s (%s)", adapter_dir, model_dir, target)
    if layout is not None and is_of_single_weights(sums):
        return InShards(base, sums, layout, target, seed)
    logger.info("%s is held in memory as a whole: its weights are converted while they are loaded", model_dir)

    def load_whole() -> tuple[Mapped, Sums]:
        whole = load(dtype=target)
        return whole, put_on(whole.model, adapter_dir)

    return AsAWhole(load_whole, target, seed, (base, sums) if target == base.stored else None)

"""Merging an adapter into the unquantized base model: an ordinary model, loadable with nothing of ours."""

import logging
from pathlib import Path
from typing import Any, Literal

from thriftune import artifacts
from thriftune.adapter_weights import attach
from thriftune.completeness import load_causal_lm
from thriftune.hardware import torch_dtype
from thriftune.stopping import save_tokenizer
from thriftune.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def merge(
    model_dir: Path,
    adapter_dir: Path,
    destination: Path,
    *,
    save_dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Add an adapter's weights to the base model's, and save the sum.

    The base is loaded unquantized: adding to dequantized NF4 weights would keep their rounding errors for ever.

    Args:
        model_dir: Base model.
        adapter_dir: Adapter.
        destination: Model directory to make.
        save_dtype: Precision of the saved weights; `auto` keeps the base model's.
        trust_remote_code: Run model code that the model ships.

    Raises:
        ModelSourceError: Not all weights of the base model are there.
        AdapterError: The adapter is not whole, or of another model.
    """
    dtype: Any = "auto" if save_dtype == "auto" else torch_dtype(save_dtype)
    base = load_causal_lm(model_dir, trust_remote_code=trust_remote_code, dtype=dtype)
    logger.info("Merging %s into %s (%s)", adapter_dir, model_dir, base.dtype)
    merged: Any = attach(base, adapter_dir).merge_and_unload(safe_merge=True)
    with artifacts.writing(destination) as directory:
        merged.save_pretrained(directory)
        save_tokenizer(load_tokenizer(model_dir, trust_remote_code=trust_remote_code), directory)
        # The whole record of the run that made the adapter, where this package did.
        record = artifacts.read_content(adapter_dir) if artifacts.is_whole(adapter_dir) else {}
        artifacts.write_manifest(directory, "model", {**record, "merged_from": "adapter"})

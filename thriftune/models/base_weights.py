"""The weights of a base model as its files have them, beside a model that trains in the same process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stored(model_dir: Path, *, trust_remote_code: bool = False, classes: Classes | None = None) -> "PreTrainedModel":
    """Load a model whose weights are memory-mapped from its files, in the type they are stored in.

    Args:
        model_dir: Directory with safetensors.
        trust_remote_code: Whether to run code that the model ships.
        classes: Classes of the classifier that was made of it; None for a causal language model.

    Returns:
        The model on the CPU, also in one rank of a job under ZeRO-3. Nothing may write to its weights.

    Raises:
        ModelSourceError: Some of its weights are missing.
    """
    with _outside_zero():
        return load_causal_lm(model_dir, trust_remote_code=trust_remote_code, classes=classes, dtype="auto")


@contextmanager
def _outside_zero() -> Iterator[None]:
    """Load whole weights: once there are `TrainingArguments` for ZeRO-3, transformers divides every model it loads."""
    from transformers.integrations import deepspeed

    module: Any = deepspeed
    configured = module._hf_deepspeed_config_weak_ref  # noqa: SLF001 - there is no other way to put it back
    module.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        module._hf_deepspeed_config_weak_ref = configured  # noqa: SLF001

"""Writing a model directory in bitsandbytes' 8 or 4 bits, which transformers loads as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thriftune.models import quantization
from thriftune.models.completeness import load_causal_lm
from thriftune.models.quantization import FourBit
from thriftune.models.stopping import save_tokenizer
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

Bits = Literal["int8", "nf4"]


def write(model_dir: Path, directory: Path, bits: Bits, shard_bytes: int) -> list[str]:
    """Write a model with its linear layers in 8 or 4 bits, and the rest in 16.

    Args:
        model_dir: Model directory.
        directory: Directory to write to.
        bits: int8 for LLM.int8(), nf4 for 4 bits with double quantization.
        shard_bytes: Largest file.

    Returns:
        Nothing to say.
    """
    import torch

    # fp16 is what bitsandbytes computes int8 in, and what a T4 computes NF4 in.
    model = load_causal_lm(model_dir, dtype=torch.float16, quantization_config=configuration(bits), device_map="cpu")
    model.save_pretrained(directory, max_shard_size=shard_bytes)
    save_tokenizer(load_tokenizer(model_dir), directory)
    return []


def configuration(bits: Bits) -> "BitsAndBytesConfig":
    """How bitsandbytes holds the layers.

    Args:
        bits: int8 or nf4.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if bits == "nf4":
        return quantization.configuration(torch.float16, FourBit())
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]


def dequantized(model: Any) -> "Iterator[tuple[str, torch.Tensor]]":
    """The weights of a model that bitsandbytes holds, one by one, as it computes with them.

    Args:
        model: The model.

    Yields:
        The name of each, and its values.
    """
    from peft.utils.integrations import dequantize_bnb_weight

    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            is_packed = type(parameter).__name__ in ("Params4bit", "Int8Params")
            state = getattr(module, "state", None) if is_packed else None
            yield f"{path}.{key}", (dequantize_bnb_weight(parameter, state=state) if is_packed else parameter).detach()

"""A GGUF file as a model directory."""

import tempfile
from pathlib import Path
from typing import Any

from thriftune.completeness import load_checked
from thriftune.errors import ModelSourceError


def convert(file: Path, directory: Path) -> None:
    """Unpack a GGUF file into 16-bit safetensors.

    transformers (5.23) reads the tokenizer and chat template out of the same file. `dequantize` gives plain weights;
    the marks it leaves on model and configuration would make `save_pretrained` refuse.

    Args:
        file: The file.
        directory: Where to write to.

    Raises:
        ModelSourceError: No such file, or it is damaged, or lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not file.is_file():
        raise ModelSourceError.single("model.source", file, "no such file.", "Check the path.")
    try:
        with tempfile.TemporaryDirectory() as scratch:  # alone, without an adapter or a tokenizer that lie beside it
            alone = Path(scratch) / file.name
            alone.symlink_to(file.resolve())
            tokenizer = AutoTokenizer.from_pretrained(alone.parent, gguf_file=alone.name)
            dequantized = GgufConfig(dequantize=True)
            loaded, _ = load_checked(
                AutoModelForCausalLM,
                alone.parent,
                str(file),
                gguf_file=alone.name,
                quantization_config=dequantized,
                dtype=torch.bfloat16,
            )
    except (ValueError, OSError, KeyError) as error:
        raise ModelSourceError.single(
            "model.source", file, f"cannot be read as GGUF: {error}.", "Use a complete file of a known architecture."
        ) from error
    model: Any = loaded
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

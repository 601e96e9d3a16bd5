"""A GGUF file as a model directory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thriftune.completeness import load_checked
from thriftune.disk import is_full
from thriftune.errors import ModelSourceError


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """The same file in a folder of its own: transformers would read an adapter or a tokenizer that lie beside it.

    Args:
        file: The file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / file.name
        link.symlink_to(file.resolve())
        yield link


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
        with alone(file) as link:
            tokenizer = AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name)
            dequantized = GgufConfig(dequantize=True)
            loaded, _ = load_checked(
                AutoModelForCausalLM,
                link.parent,
                str(file),
                gguf_file=link.name,
                quantization_config=dequantized,
                dtype=torch.bfloat16,
            )
    except (ValueError, OSError, KeyError) as error:
        if is_full(error):  # of temporary files
            raise
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

"""Converting a GGUF file to a model directory."""

from pathlib import Path
from typing import Any

from thriftune.disk import is_full
from thriftune.models import config_json, gguf_file
from thriftune.models.completeness import load_checked


def convert(file: Path, directory: Path, source: str) -> None:
    """Unpack a GGUF file into 16-bit safetensors.

    transformers (5.23) reads the tokenizer and chat template from the same file. `dequantize` gives plain weights, but
    the marks it leaves on model and configuration would make `save_pretrained` refuse.

    Args:
        file: The file.
        directory: Directory to write to.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: The file is missing or damaged, or lacks weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    try:
        config = AutoConfig.for_model(**config_json.of_gguf(file, source))
        with gguf_file.alone(file) as link, gguf_file.known(file):
            dequantized = GgufConfig(dequantize=True)
            loaded, _ = load_checked(
                AutoModelForCausalLM,
                link.parent,
                source,
                gguf_file=link.name,
                config=config,
                quantization_config=dequantized,
                dtype=torch.bfloat16,
            )
    except gguf_file.UNREADABLE as error:
        if is_full(error):  # the disk of temporary files
            raise
        raise config_json.unreadable_gguf(error, source) from error
    model: Any = loaded
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    gguf_file.save_tokenizer(file, directory)

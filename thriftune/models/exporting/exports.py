"""The table of formats that a model can be exported to. Another format is a row here, and a module that writes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config.exporting import ExportFormat
from thriftune.errors import ExportError, Problem
from thriftune.models.exporting import gguf_architectures, gguf_writing, plain, quantized
from thriftune.models.exporting.gguf_architectures import FIELD
from thriftune.models.exporting.gguf_vocabulary import vocabulary_of
from thriftune.models.exporting.tensors import StoredTensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GB = 1e9

# Writes a model directory into another directory; its last two arguments are the model's name and the largest file in
# bytes. It returns sentences about what a person should know of the files.
Write = Callable[[Path, Path, str, int], list[str]]


@dataclass(frozen=True)
class Export:
    """A format.

    Attributes:
        title: What it is, for people.
        bytes_per_weight: Size of a weight in its files, at most.
        is_gguf: Whether it is one GGUF file.
        held_bytes: Bytes per weight of memory to write it; 0 if the model is not held.
        write: Writes it.
    """

    title: str
    bytes_per_weight: float
    is_gguf: bool
    held_bytes: float
    write: Write


def _gguf(kind: str) -> Write:
    return lambda model_dir, directory, name, _shard: gguf_writing.write(model_dir, directory, kind, name)


def _plain(precision: Any) -> Write:
    return lambda model_dir, directory, _name, shard: plain.write(model_dir, directory, precision, shard)


def _quantized(bits: Any) -> Write:
    return lambda model_dir, directory, _name, shard: quantized.write(model_dir, directory, bits, shard)


EXPORTS: Mapping[ExportFormat, Export] = {
    "gguf-f16": Export("GGUF, 16 bits", 2.0, True, 0.0, _gguf("f16")),
    "gguf-q8_0": Export("GGUF, 8 bits (q8_0)", 1.07, True, 0.0, _gguf("q8_0")),
    "gguf-q4_0": Export("GGUF, 4 bits (q4_0)", 0.7, True, 0.0, _gguf("q4_0")),
    "int8": Export("bitsandbytes, 8 bits", 1.5, False, 2.0, _quantized("int8")),
    "nf4": Export("bitsandbytes, 4 bits (NF4)", 1.2, False, 2.0, _quantized("nf4")),
    "fp32": Export("safetensors, fp32", 4.0, False, 0.0, _plain("fp32")),
    "fp16": Export("safetensors, fp16", 2.0, False, 0.0, _plain("fp16")),
    "bf16": Export("safetensors, bf16", 2.0, False, 0.0, _plain("bf16")),
}


def problems_of(formats: Sequence[str], content: Mapping[str, Any], source: str) -> Iterator[Problem]:
    """What keeps a model from being exported, by its config.json alone.

    Args:
        formats: The formats that were asked for.
        content: The model's config.json.
        source: The model, for the messages.

    Yields:
        A problem, which names all formats that have it.
    """
    from transformers import CONFIG_MAPPING

    if content.get("auto_map") and content.get("model_type") not in CONFIG_MAPPING:
        message = f"{source} ships code of its own for its architecture, and exports run none."
        yield Problem(FIELD, ", ".join(formats), message, "Remove export, or use a model that transformers knows.")
        return
    files = ", ".join(name for name, export in EXPORTS.items() if name in formats and export.is_gguf)
    if not files:
        return
    try:
        gguf_architectures.require_covered(content, files, source)
    except ExportError as error:
        yield from error.problems


def require_tokenizer(formats: Sequence[str], tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Refuse a tokenizer that one of the formats cannot hold.

    Args:
        formats: The formats that were asked for.
        tokenizer: The model's tokenizer.
        rows: Rows of the model's embedding.

    Raises:
        ExportError: A GGUF file was asked for, and cannot say to llama.cpp how the tokenizer works.
    """
    if any(EXPORTS[name].is_gguf for name in EXPORTS if name in formats):
        vocabulary_of(tokenizer, rows)


def require_weights(formats: Sequence[str], model_dir: Path) -> None:
    """Refuse weights that one of the formats cannot hold, as far as that is known before they are written.

    Args:
        formats: The formats that were asked for.
        model_dir: Model directory.

    Raises:
        ExportError: A GGUF file was asked for, and the model's head is another than its config.json says.
    """
    from transformers import AutoConfig

    if any(EXPORTS[name].is_gguf for name in EXPORTS if name in formats):
        with StoredTensors(model_dir) as tensors:
            gguf_writing.require_one_head(tensors, AutoConfig.from_pretrained(model_dir, local_files_only=True))


def write(name: ExportFormat, model_dir: Path, directory: Path, title: str, shard_gb: float) -> list[str]:
    """Write a model in a format.

    Args:
        name: The format.
        model_dir: Model directory.
        directory: Directory to write to, which exists.
        title: Name of the model.
        shard_gb: Largest safetensors file, in GB.

    Returns:
        Sentences about what a person should know of the files.

    Raises:
        ExportError: The format cannot hold this model.
    """
    return EXPORTS[name].write(model_dir, directory, title, int(shard_gb * _GB))

"""Writing a model directory as one GGUF file, a part of a tensor at a time.

What is stored in how many bits is llama.cpp's convention: norms and biases in 32 bits, matrices in the format's. In
q4_0, embedding and head are in q8_0: llama.cpp has q6_K there, which gguf's quantizers do not write.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from thriftune.errors import ExportError
from thriftune.models.exporting import gguf_architectures as architectures
from thriftune.models.exporting.gguf_vocabulary import PIECES, Vocabulary, vocabulary_of
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

FILE = "model.gguf"
TYPES = ("f16", "q8_0", "q4_0")
_PART_BYTES = 1 << 26  # of a tensor in 32 bits, at a time
_TOO_LARGE = 65520  # the first number that fp16 rounds to infinity
_BLOCK = 32  # weights that share a scale in q8_0 and q4_0
_HEAD = "lm_head.weight"
_OUTER = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class _Written:
    """A tensor that is made and written when its turn comes, as a GGUFWriter writes arrays.

    Attributes:
        nbytes: Its size in the file.
        parts: Its parts, in the file's form.
    """

    nbytes: int
    parts: Iterator["np.ndarray[Any, Any]"]

    def tofile(self, file: IO[bytes]) -> None:
        """Write it."""
        import numpy as np

        for part in self.parts:  # numpy's own tofile does not say that it is the disk that is full
            file.write(np.ascontiguousarray(part).data)


def write(model_dir: Path, directory: Path, kind: str, name: str) -> list[str]:
    """Write a model as one GGUF file.

    Args:
        model_dir: Model directory.
        directory: Directory to write to.
        kind: One of `TYPES`.
        name: Name of the model, for the file.

    Returns:
        Sentences about what is stored in another way than the format's name says.

    Raises:
        ExportError: The model, or its tokenizer, is not covered; or a weight is too large for 16 bits.
    """
    from gguf import GGUFWriter, LlamaFileType
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    architecture = architectures.require_covered(config.to_dict(), f"gguf-{kind}", model_dir.name)
    tokenizer = load_tokenizer(model_dir)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size)
    file_types = {"f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0, "q4_0": LlamaFileType.MOSTLY_Q4_0}
    writer = GGUFWriter(directory / FILE, architecture.name)
    try:
        writer.add_name(f"{name} {kind}")  # transformers takes a name that is `mistral` for an architecture
        writer.add_file_type(file_types[kind])
        if kind != "f16":
            writer.add_quantization_version(2)
        architectures.write_settings(writer, config)
        _write_vocabulary(writer, vocabulary)
        with StoredTensors(model_dir) as tensors:
            require_one_head(tensors, config)
            remarks = _write_tensors(writer, tensors, config, kind)
        return [*remarks, *_unsaid(config, tokenizer)]
    finally:
        writer.close()


def require_one_head(tensors: StoredTensors, config: "PretrainedConfig") -> None:
    """Refuse a model with a head of its own, if its config.json says that the head is the embedding.

    transformers then goes by the files; a GGUF file without a head has the embedding for one.

    Args:
        tensors: The model's weights.
        config: Its configuration.

    Raises:
        ExportError: It is such a model.
    """
    import torch

    if _HEAD not in tensors or not config.tie_word_embeddings:
        return
    embeddings = [name for name in tensors if name != _HEAD and tensors.shapes[name] == tensors.shapes[_HEAD]]
    if not any(torch.equal(tensors.get(_HEAD), tensors.get(name)) for name in embeddings):
        message = f"has a {_HEAD} that is not its embedding, but tie_word_embeddings: true in its config.json."
        raise ExportError.single(architectures.FIELD, "gguf", message, "Set tie_word_embeddings: false there.")


def _unsaid(config: "PretrainedConfig", tokenizer: Any) -> Iterator[str]:
    """What such a file has no key for, and llama.cpp so does not do."""
    window = getattr(config, "sliding_window", None)
    if window and config.model_type == "mistral" and window < config.max_position_embeddings:
        yield f"llama.cpp lets every token see all before it, and not {window:,} alone: longer texts differ."
    taking = [token.content for token in tokenizer.added_tokens_decoder.values() if token.lstrip or token.rstrip]
    if taking:
        yield f"llama.cpp keeps the white space beside {', '.join(taking)}, which the tokenizer takes away."
    if isinstance(tokenizer.chat_template, dict) and len(tokenizer.chat_template) > 1:
        others = ", ".join(sorted({*tokenizer.chat_template} - {"default"}))
        yield f"of several chat templates only the default one is in the file, and not {others}."


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.kind == PIECES:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.adds["space"])
    else:
        writer.add_token_merges(list(vocabulary.merges))
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds["bos"])
    writer.add_add_eos_token(vocabulary.adds["eos"])
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _write_tensors(writer: Any, tensors: StoredTensors, config: "PretrainedConfig", kind: str) -> list[str]:
    """Announce every tensor, then write them one after the other."""
    import numpy as np
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    names = architectures.tensor_names(config, list(tensors))
    chosen = {name: _type_of(known, tensors.shapes[name], kind) for name, known in names.items()}
    factors = architectures.rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(architectures.ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    sizes = {}
    for name, known in names.items():
        number, shape = GGMLQuantizationType[chosen[name]], tensors.shapes[name]
        is_packed = chosen[name] not in ("F32", "F16")
        stored = quant_shape_to_byte_shape(shape, number) if is_packed else shape
        dtype = np.dtype(np.uint8) if is_packed else np.dtype({"F32": np.float32, "F16": np.float16}[chosen[name]])
        sizes[name] = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(known, stored, dtype, sizes[name], raw_dtype=number if is_packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(_Written(factors.nbytes, iter([factors])))
    for name, known in names.items():
        order = architectures.row_order(known, tensors.shapes[name][0], config)
        writer.write_tensor_data(_Written(sizes[name], _parts(tensors, name, order, chosen[name])))
    return list(_remarks(names, chosen, kind))


def _type_of(known: str, shape: tuple[int, ...], kind: str) -> str:
    """The type that a tensor is stored in."""
    if len(shape) == 1 or "_norm" in known:
        return "F32"
    if kind == "f16" or shape[-1] % _BLOCK:
        return "F16"
    return "Q8_0" if known in _OUTER else kind.upper()


def _remarks(names: dict[str, str], chosen: dict[str, str], kind: str) -> Iterator[str]:
    if kind == "f16":
        return
    odd = [known for name, known in names.items() if chosen[name] == "F16"]
    if odd:
        others = f" and {len(odd) - 1} more" if odd[1:] else ""
        yield f"{odd[0]}{others} stayed in 16 bits: rows are no multiple of {_BLOCK} weights."
    outer = [known for name, known in names.items() if chosen[name] == "Q8_0" and kind == "q4_0"]
    if outer:
        yield f"{' and '.join(outer)} {'are' if outer[1:] else 'is'} in q8_0."


def _parts(
    tensors: StoredTensors, name: str, order: "np.ndarray[Any, Any] | None", kind: str
) -> Iterator["np.ndarray[Any, Any]"]:
    """A tensor in the form of the file, some rows at a time.

    Raises:
        ExportError: A weight is too large for 16 bits.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, quantize

    shape = tensors.shapes[name]
    rows = max(1, _PART_BYTES // (4 * int(np.prod(shape[1:]))))
    whole = tensors.get(name)  # mapped: only what is looked at is read
    for start in range(0, shape[0], rows):
        part = whole[start : start + rows] if order is None else whole[order[start : start + rows]]
        values = np.ascontiguousarray(part.float().numpy())
        if kind == "F16" and np.abs(values).max(initial=0.0) >= _TOO_LARGE:
            message = f"{name} has a weight of {np.abs(values).max():.3g}, and the largest number in fp16 is 65504."
            raise ExportError.single(architectures.FIELD, "gguf", message, "Use bf16 or fp32.")
        yield quantize(values, GGMLQuantizationType[kind])

"""Writing a model directory as safetensors of another precision, in files of a chosen size: one tensor in memory."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.errors import ExportError
from thriftune.hardware import Precision, torch_dtype
from thriftune.models.exporting.gguf_architectures import FIELD
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.files import TEMPLATES, UNWANTED, is_wanted
from thriftune.models.weight_files import SINGLE
from thriftune.models.weight_writer import Entry, aligned, write_file, write_index

if TYPE_CHECKING:
    import torch

_CONFIG = "config.json"
# A GGUF file beside the weights would be taken for the export.
_NOT_COPIED = (*UNWANTED, "*.safetensors", "*.index.json", "*.gguf", "*.h5", "*.msgpack", artifacts.MANIFEST)
# Keys about the weights as they were: the older name of their type, and a file of another name than the usual.
_OF_THE_FILES = ("torch_dtype", "transformers_weights")


def write(model_dir: Path, directory: Path, precision: Precision, shard_bytes: int) -> list[str]:
    """Write a model in another precision; every weight is rounded to the nearest number.

    Args:
        model_dir: Model directory.
        directory: Directory to write to.
        precision: Precision of the weights.
        shard_bytes: Largest file; a larger tensor has one of its own.

    Returns:
        Nothing to say.

    Raises:
        ExportError: A weight is too large for fp16.
    """
    dtype = torch_dtype(precision)
    with StoredTensors(model_dir) as tensors:
        files = _files(tensors, dtype, shard_bytes)
        for file, entries in files.items():
            write_file(directory / file, entries, lambda name: _cast(name, tensors.get(name), precision))
    if list(files) != [SINGLE]:
        write_index(directory, files)
    copy_others(model_dir, directory, {"dtype": str(dtype).removeprefix("torch.")})
    return []


def _files(tensors: StoredTensors, dtype: "torch.dtype", shard_bytes: int) -> dict[str, dict[str, Entry]]:
    """The tensors of each file, by its name."""
    parts: list[dict[str, Entry]] = [{}]
    size = 0
    for name in tensors:
        stored = tensors.dtype(name)
        entry = Entry(dtype if stored.is_floating_point else stored, tensors.shapes[name])
        if parts[-1] and size + entry.size > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = entry
        size += entry.size
    if len(parts) == 1:
        return {SINGLE: aligned(parts[0])}
    return {f"model-{n:05d}-of-{len(parts):05d}.safetensors": aligned(part) for n, part in enumerate(parts, 1)}


def copy_others(model_dir: Path, directory: Path, changes: Mapping[str, Any]) -> None:
    """Copy everything of a model but its weights, in whatever form, and its manifest.

    Args:
        model_dir: Model directory.
        directory: Directory to write to.
        changes: What takes the place of keys of its config.json.
    """
    for file in sorted(model_dir.iterdir()):
        if file.is_file() and is_wanted(file.name, ("*",), _NOT_COPIED):
            shutil.copyfile(file, directory / file.name)
    if (model_dir / TEMPLATES).is_dir():
        shutil.copytree(model_dir / TEMPLATES, directory / TEMPLATES, dirs_exist_ok=True)
    content = json.loads((model_dir / _CONFIG).read_text(encoding="utf-8"))
    for name in _OF_THE_FILES:
        content.pop(name, None)
    (directory / _CONFIG).write_text(json.dumps({**content, **changes}, indent=2) + "\n", encoding="utf-8")


def _cast(name: str, tensor: "torch.Tensor", precision: Precision) -> "torch.Tensor":
    """A tensor in another precision, if it holds weights.

    Raises:
        ExportError: A weight is too large for it.
    """
    import torch

    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(torch_dtype(precision))
    if not cast.isfinite().all() and tensor.isfinite().all():
        largest, most = tensor.abs().max(), torch.finfo(cast.dtype).max
        message = f"{name} has a weight of {largest:.3g}, and the largest number in {precision} is {most:g}."
        raise ExportError.single(FIELD, precision, message, "Use bf16 or fp32.")
    return cast

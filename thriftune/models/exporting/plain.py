"""Writing a model directory as safetensors of another precision, in files of a chosen size: one file in memory."""

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
from thriftune.models.weight_files import INDEX, SINGLE

if TYPE_CHECKING:
    import torch

_PARTIAL = "part-{:05d}.safetensors"
_CONFIG = "config.json"


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
    written: list[list[str]] = []
    with StoredTensors(model_dir) as tensors:
        part: dict[str, torch.Tensor] = {}
        size = 0
        for name in tensors:
            tensor = _cast(name, tensors.get(name), dtype)
            if part and size + tensor.nbytes > shard_bytes:
                written.append(_save(part, directory / _PARTIAL.format(len(written))))
                part, size = {}, 0
            part[name] = tensor
            size += tensor.nbytes
        written.append(_save(part, directory / _PARTIAL.format(len(written))))
    _name(directory, written)
    copy_others(model_dir, directory, {"dtype": str(dtype).removeprefix("torch.")})
    return []


def copy_others(model_dir: Path, directory: Path, changes: Mapping[str, Any]) -> None:
    """Copy everything of a model but its weights and its manifest.

    Args:
        model_dir: Model directory.
        directory: Directory to write to.
        changes: What takes the place of keys of its config.json.
    """
    for file in sorted(model_dir.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (INDEX, artifacts.MANIFEST):
            shutil.copyfile(file, directory / file.name)
    content = json.loads((model_dir / _CONFIG).read_text(encoding="utf-8"))
    content.pop("torch_dtype", None)  # the key's older name
    (directory / _CONFIG).write_text(json.dumps({**content, **changes}, indent=2) + "\n", encoding="utf-8")


def _cast(name: str, tensor: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor in another type, if it holds weights.

    Raises:
        ExportError: A weight is too large for it.
    """
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not cast.isfinite().all() and tensor.isfinite().all():
        message = f"{name} has a weight of {tensor.abs().max():.3g}, and the largest number in fp16 is 65504."
        raise ExportError.single(FIELD, str(dtype).removeprefix("torch."), message, "Use bf16 or fp32.")
    return cast


def _save(part: "dict[str, torch.Tensor]", file: Path) -> list[str]:
    """Write a file.

    Returns:
        Names of its tensors.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in part.items()}, file, metadata={"format": "pt"})
    return list(part)


def _name(directory: Path, written: list[list[str]]) -> None:
    """Give the files the names that transformers looks for, and write the index if there are several."""
    if len(written) == 1:
        (directory / _PARTIAL.format(0)).rename(directory / SINGLE)
        return
    files: dict[str, str] = {}
    size = 0
    for number, names in enumerate(written):
        file = directory / f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
        (directory / _PARTIAL.format(number)).rename(file)
        size += file.stat().st_size
        files |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""Writing safetensors files tensor by tensor, so that one tensor is in memory at a time.

safetensors' own writer takes all tensors of a file at once.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from thriftune import artifacts
from thriftune.models.weight_files import INDEX

if TYPE_CHECKING:
    import torch

# As safetensors names the types, by the names that torch prints.
_NAMES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}  # fmt: skip
_ALIGNMENT = 8  # of the first tensor, which the header is padded to
_PIECE = 2**26  # bytes that are handed to the file at once


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written.

    Attributes:
        dtype: Its type.
        shape: Its shape.
    """

    dtype: "torch.dtype"
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


# Returns a tensor by its name, on the CPU.
TensorOf = Callable[[str], "torch.Tensor"]


def write_file(
    file: Path, entries: Mapping[str, Entry], tensor_of: TensorOf, on_bytes: Callable[[int], object] = lambda _: None
) -> None:
    """Write a safetensors file.

    Args:
        file: The file. An older one is removed first: a process may have it mapped into its memory.
        entries: The tensors by name, in the order in which they are asked for and written; see `aligned`.
        tensor_of: Makes each of them, in the type and shape of its entry.
        on_bytes: Told how many bytes were written.

    Raises:
        ValueError: A tensor has another type or shape than its entry.
    """
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        opened.write(_header(entries))
        for name, entry in entries.items():
            tensor = tensor_of(name)
            if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, and was to be {entry}.")
            _write_bytes(opened, tensor)
            on_bytes(entry.size)


def aligned(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Tensors in the order in which each begins at a multiple of its type's size: larger types first, then by name.

    Args:
        entries: The tensors of a file, by name.
    """
    return dict(sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def write_index(directory: Path, files: Mapping[str, Mapping[str, Entry]]) -> None:
    """Write the index that says which file each tensor is in.

    Args:
        directory: The model's directory.
        files: The tensors of each file.
    """
    placed = {name: file for file, entries in files.items() for name in entries}
    total = sum(entry.size for entries in files.values() for entry in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    artifacts.write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _header(entries: Mapping[str, Entry]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, entry in entries.items():
        offsets = [start, start + entry.size]
        described[name] = {"dtype": _NAMES[str(entry.dtype)], "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.size
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(_ALIGNMENT, "little") + header


def _write_bytes(opened: IO[bytes], tensor: "torch.Tensor") -> None:
    import torch

    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(content), _PIECE):
        opened.write(content[start : start + _PIECE].data)

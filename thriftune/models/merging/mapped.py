"""A base model whose weights stay in its files: read by the system when they are used, forgotten when it is told to.

transformers maps safetensors files into memory, and takes weights from there as they are if they are wanted in the type
they are stored in. So a model of any size is "loaded" in the memory of its buffers.
"""

import ctypes
import json
import logging
import mmap
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm
from thriftune.models.weight_files import Folder, files_to_read

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MAPS = Path("/proc/self/smaps")
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)$")
_CHANGED = "Anonymous:"  # kilobytes of a mapped file's range that were written to, and are no longer the file's
_FORGET = 4  # MADV_DONTNEED
# As safetensors names the types that weights are computed in.
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass
class Mapped:
    """A model, and where in memory the files of its weights are.

    Attributes:
        model: The model.
        files: The weight files that it was read from, in order.
        stored: Type of most of its weights in the files.
        ranges: First address and end of each part of memory that shows a file; none where that cannot be known.
    """

    model: Any
    files: tuple[Path, ...]
    stored: "torch.dtype"
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def find_ranges(self) -> None:
        """Look where the files are in memory, once nothing is written to the weights any more.

        A range that was written to is left out: to forget it would undo that.
        """
        self.ranges = _unchanged_ranges(self.files)

    def release(self, tensor: "torch.Tensor") -> None:
        """Give the memory of a weight back to the system, which reads it again from its file when it is next used.

        Args:
            tensor: A weight of the model; one that is in no file is left alone.
        """
        start, size, page = tensor.data_ptr(), tensor.numel() * tensor.element_size(), mmap.PAGESIZE
        if not any(first <= start and start + size <= end for first, end in self.ranges):
            return
        first, end = -(-start // page) * page, (start + size) // page * page
        if end > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _FORGET)


def load(
    model_dir: Path,
    *,
    trust_remote_code: bool = False,
    classes: Classes | None = None,
    dtype: "torch.dtype | None" = None,
) -> Mapped:
    """Load a model whose weights stay in its files, in the type that most of them are stored in.

    Args:
        model_dir: Directory with safetensors.
        trust_remote_code: Run model code that the model ships.
        classes: Classes of the classifier to make of it; None for a causal language model.
        dtype: Another type, for which they are converted, and held in memory.

    Raises:
        ModelSourceError: Some of its weights are missing.
    """
    files = tuple(model_dir / name for name in files_to_read(Folder(model_dir), str(model_dir)))
    stored = _stored_in(files)
    model: Any = load_causal_lm(model_dir, trust_remote_code=trust_remote_code, classes=classes, dtype=dtype or stored)
    mapped = Mapped(model.eval(), files, stored)
    mapped.find_ranges()
    return mapped


def asked_dtype(model_dir: Path, stored: "torch.dtype") -> "torch.dtype":
    """The type that a model's config.json says its weights have: what `dtype="auto"` of transformers loads.

    Args:
        model_dir: The model's directory.
        stored: The type to take where it says none, or one that no model is computed in.
    """
    import torch

    content = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    named = content.get("dtype") or content.get("torch_dtype")
    name = str(named).removeprefix("torch.")
    return getattr(torch, name) if name in _TYPES.values() else stored


def _stored_in(files: Sequence[Path]) -> "torch.dtype":
    import torch
    from safetensors import safe_open

    elements: Counter[str] = Counter()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(name)
                elements[_TYPES.get(part.get_dtype(), "")] += torch.Size(part.get_shape()).numel()
    elements.pop("", None)
    most = elements.most_common(1)
    return getattr(torch, most[0][0]) if most else torch.float32


def _unchanged_ranges(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Where files are in memory as they are on the disk; nowhere on a system that does not say."""
    if not _MAPS.is_file():
        return []
    wanted, found, current = {str(file.resolve()) for file in files}, [], None
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if opening := _RANGE.match(line):
            current = (int(opening[1], 16), int(opening[2], 16)) if opening[3] in wanted else None
        elif current and line.startswith(_CHANGED) and line.split()[1] == "0":
            found.append(current)
    return found

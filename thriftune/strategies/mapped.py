"""A model whose weights are memory-mapped from its files, so that a strategy can take them one at a time."""

import ctypes
import logging
import math
import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.models.architecture import Architecture
from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def map_model(model_dir: Path, *, trust_remote_code: bool = False, classes: Classes | None = None) -> "PreTrainedModel":
    """Load a model whose weights are memory-mapped from its files, in the precision they are stored in.

    Must run before `TrainingArguments` exist: after that, transformers wraps every load in `zero.Init`.

    Args:
        model_dir: Directory with safetensors.
        trust_remote_code: Whether to run code that the model ships.
        classes: Classes of the classifier to make of it; None for a causal language model.

    Returns:
        The model on the CPU. Nothing may write to its weights.

    Raises:
        ModelSourceError: Some of its weights are missing.
    """
    return load_causal_lm(model_dir, trust_remote_code=trust_remote_code, classes=classes, dtype="auto")


def copied_bytes(architecture: Architecture) -> int:
    """Bytes that each process that maps a model copies nevertheless: experts that lie apart in its files, in 16 bits.

    transformers (5.23) joins them in one tensor for each layer, in memory, before any of them is taken.

    Args:
        architecture: The model.
    """
    return 2 * sum(math.prod(shape) for shape in architecture.shapes.values() if len(shape) > 2)


def give_back_pages(tensor: "torch.Tensor") -> None:
    """Drop the pages that lie wholly inside a mapped tensor from this process: they were copied and are not read again.

    Only on Linux does the call mean this; elsewhere the pages still count as shared until the file is closed.

    Args:
        tensor: The tensor, whose content stays in the file.
    """
    # Between the parts of a tensor that is not contiguous there may be pages of another tensor.
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= start:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.madvise(start, end - start, mmap.MADV_DONTNEED) != 0:
        logger.debug("madvise: errno %d", ctypes.get_errno())

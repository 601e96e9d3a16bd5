"""Load a model for ZeRO without any rank ever holding a copy of it.

Measured alternatives (benchmarks/zero3_loading.py, docs/zero3-loading.md): `deepspeed.zero.Init` around
`from_pretrained` reads the whole state dict on rank 0; handing DeepSpeed a memory-mapped model makes it write into
every page of the mapping. Here each parameter passes through one staging buffer, and its pages of the file are freed
as soon as it is partitioned: the peak is one shard and the largest parameter.
"""

import ctypes
import logging
import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.completeness import load_causal_lm

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def map_model(model_dir: Path, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Load a model whose weights are memory-mapped from its files, in the precision they are stored in.

    Must run before `TrainingArguments` exist: after that, transformers wraps every load in `zero.Init`.

    Args:
        model_dir: Directory with safetensors.
        trust_remote_code: Whether to run code that the model ships.

    Returns:
        The model on the CPU. Nothing may write to its weights.

    Raises:
        ModelSourceError: Some of its weights are missing.
    """
    return load_causal_lm(model_dir, trust_remote_code=trust_remote_code, dtype="auto")


def partition(model: "PreTrainedModel", config: dict[str, Any], dtype: "torch.dtype", device: "torch.device") -> None:
    """Shard a mapped model over the ranks, parameter by parameter (ZeRO-3). Collective: every rank calls it.

    Args:
        model: What `map_model` returned; its parameters become ZeRO-3 partitions.
        config: The complete DeepSpeed configuration.
        dtype: Precision to train in.
        device: Where this rank computes.
    """
    import deepspeed
    import torch

    # DeepSpeed counts ranks through its own layer; this makes it use the existing process group.
    deepspeed.init_distributed()
    parameters = list(model.parameters())
    largest = max(p.numel() for p in parameters)
    staging = torch.empty(largest, dtype=dtype, device=device)
    first: Any = None
    for parameter in parameters:
        mapped = parameter.data
        staged = staging[: mapped.numel()].view(mapped.shape)
        parameter.data = staged.copy_(mapped)
        _give_back_pages(mapped)
        if first is None:
            # A module with only this parameter: Init partitions all it is given, and here it must be one at a time.
            holder = torch.nn.Module()
            holder.register_parameter("first", parameter)
            deepspeed.zero.Init(module=holder, config_dict_or_path=config, dtype=dtype)
            first = parameter
        else:
            # How DeepSpeed itself converts parameters that were added later (parameter_offload.py).
            first.convert_to_zero_parameters(param_list=[parameter])
    for buffer in model.buffers():  # DeepSpeed moves them only for a model that it partitions itself
        buffer.data = buffer.data.to(device)


def move_to_device(model: "PreTrainedModel", dtype: "torch.dtype", device: "torch.device") -> None:
    """Move a whole mapped model to this rank's device (ZeRO 0 to 2), one parameter at a time.

    Args:
        model: What `map_model` returned.
        dtype: Precision to train in.
        device: Where this rank computes; if it is a GPU, nothing is copied in host memory.
    """
    for parameter in model.parameters():
        mapped = parameter.data
        parameter.data = mapped.to(device=device, dtype=dtype, copy=True)
        _give_back_pages(mapped)


def _give_back_pages(tensor: "torch.Tensor") -> None:
    """Drop the pages that lie wholly inside a mapped tensor from this process: they were copied and are not read again.

    Only on Linux does the call mean this; elsewhere the pages still count as shared until the file is closed.
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

"""Load a model for ZeRO without any rank ever holding a copy of it.

Measured alternatives (benchmarks/zero3_loading.py, docs/zero3-loading.md): `deepspeed.zero.Init` around
`from_pretrained` reads the whole state dict on rank 0; handing DeepSpeed a memory-mapped model makes it write into
every page of the mapping. Here each parameter passes through one staging buffer, and its pages of the file are freed
as soon as it is partitioned: the peak is one shard and the largest parameter. A weight that is held in 4 bits is
quantized on the way (`thriftune.strategies.quantized_loading`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thriftune.strategies.mapped import give_back_pages
from thriftune.strategies.quantized_loading import Unquantized, packed

if TYPE_CHECKING:
    import torch


class Partitioning:
    """Shards parameters over the ranks, one at a time (ZeRO-3). Every method is collective: every rank calls it.

    Args:
        config: The complete DeepSpeed configuration.
        dtype: Type of the weights.
        device: Where this rank computes.
    """

    def __init__(self, config: dict[str, Any], dtype: "torch.dtype", device: "torch.device") -> None:
        import deepspeed

        # DeepSpeed counts ranks through its own layer; this makes it use the existing process group.
        deepspeed.init_distributed()
        self._config, self._dtype, self._device = config, dtype, device
        self._first: Any = None

    def quantized(self, layers: list[Unquantized]) -> None:
        """Quantize and shard the weights of layers in 4 bits.

        Args:
            layers: The layers, which get their weights.
        """
        for each in packed(layers, self._dtype, self._device):
            self._take(each.put_in_place())

    def rest_of(self, model: Any) -> None:
        """Shard the parameters of a mapped model that are not sharded yet.

        Args:
            model: The model.
        """
        import torch

        parameters = [parameter for parameter in model.parameters() if not hasattr(parameter, "ds_id")]
        staging = torch.empty(max((p.numel() for p in parameters), default=0), dtype=self._dtype, device=self._device)
        for parameter in parameters:
            mapped = parameter.data
            parameter.data = staging[: mapped.numel()].view(mapped.shape).copy_(mapped)
            give_back_pages(mapped)
            self._take(parameter)
        for buffer in model.buffers():  # DeepSpeed moves them only for a model that it partitions itself
            buffer.data = buffer.data.to(self._device)

    def _take(self, parameter: "torch.nn.Parameter") -> None:
        """Shard a parameter whose data is on the device; that is free afterwards."""
        import deepspeed
        import torch

        if self._first is not None:
            # How DeepSpeed itself converts parameters that were added later (parameter_offload.py).
            self._first.convert_to_zero_parameters(param_list=[parameter])
            return
        # A module with only this parameter: Init partitions all it is given, and here it must be one at a time.
        holder = torch.nn.Module()
        holder.register_parameter("first", parameter)
        deepspeed.zero.Init(module=holder, config_dict_or_path=self._config, dtype=self._dtype)
        self._first = parameter


@contextmanager
def gathered_by_peft(config: dict[str, Any], *, enabled: bool) -> Iterator[None]:
    """Let peft gather the sharded weights that it copies, of modules that train as a whole (`lora.modules_to_save`).

    It asks transformers whether a DeepSpeed configuration of stage 3 exists, which holds from `TrainingArguments` on.

    Args:
        config: The complete DeepSpeed configuration.
        enabled: Whether the model is sharded already.
    """
    from transformers.integrations import HfDeepSpeedConfig

    existing = HfDeepSpeedConfig(config) if enabled else None  # transformers holds a weak reference to it
    yield
    del existing


def quantize(layers: list[Unquantized], dtype: "torch.dtype", device: "torch.device") -> None:
    """Quantize the weights of layers onto this rank's device, one at a time (ZeRO 0 to 2).

    Args:
        layers: The layers, which get their weights.
        dtype: Type of the other weights.
        device: Where this rank computes.
    """
    for each in packed(layers, dtype, device):
        each.put_in_place()


def move_to_device(model: Any, dtype: "torch.dtype", device: "torch.device") -> None:
    """Move a whole mapped model to this rank's device (ZeRO 0 to 2), one parameter at a time.

    Args:
        model: The model. Weights in 4 bits are there already, and stay as they are.
        dtype: Precision to train in.
        device: Where this rank computes; if it is a GPU, nothing is copied in host memory.
    """
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is not None:
            continue
        mapped = parameter.data
        parameter.data = mapped.to(device=device, dtype=dtype, copy=True)
        give_back_pages(mapped)

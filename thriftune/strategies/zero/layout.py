"""The part of a DeepSpeed configuration that decides memory: where it keeps what, and how large its buffers are."""

import copy
from dataclasses import dataclass
from typing import Any

from thriftune.config.zero_file import offload_device
from thriftune.strategies.zero.configuration import with_buffers

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Layout:
    """What a DeepSpeed configuration says about memory.

    Attributes:
        stage: ZeRO stage.
        offloaded_optimizer: Where optimizer states go: none, cpu or nvme.
        offloaded_params: Where weights go: none, cpu or nvme.
        reduce_bucket: Elements of the buffer in which gradients are reduced.
        prefetch: Elements that stage 3 gathers ahead.
        live_parameters: Elements that stage 3 keeps gathered at once.
        sub_group: Elements that stage 3 updates in one part of the optimizer step.
        is_pinned: Whether offloaded tensors are in page-locked memory.
        overlaps: Whether some gradients are reduced while others are still computed.
        gradient_width: Bytes of a summed gradient; 0 means as many as the precision of the training has.
    """

    stage: int
    offloaded_optimizer: str = "none"
    offloaded_params: str = "none"
    reduce_bucket: int = 0
    prefetch: int = 0
    live_parameters: int = 0
    sub_group: int = 0
    is_pinned: bool = False
    overlaps: bool = False
    gradient_width: int = 0


def layout(config: dict[str, Any], hidden_size: int, packing: int = 1) -> Layout:
    """Read from a checked configuration where it keeps what, and how large its buffers are.

    Args:
        config: A configuration that `check` has accepted.
        hidden_size: Width of the model, which decides the size of "auto" buffers.
        packing: Weights of a layer in one element of a tensor: more than one in 4 bits.
    """
    section = with_buffers(copy.deepcopy(config["zero_optimization"]), hidden_size, packing)
    return Layout(
        stage=int(section["stage"]),
        offloaded_optimizer=offload_device(section, "offload_optimizer"),
        offloaded_params=offload_device(section, "offload_param"),
        reduce_bucket=int(section["reduce_bucket_size"]),
        prefetch=int(section.get("stage3_prefetch_bucket_size", 0)),
        live_parameters=int(section.get("stage3_max_live_parameters", 0)),
        sub_group=int(section.get("sub_group_size", 0)),
        is_pinned=any(
            isinstance(section.get(key), dict) and bool(section[key].get("pin_memory"))
            for key in ("offload_optimizer", "offload_param")
        ),
        overlaps=bool(section.get("overlap_comm")),
        gradient_width=_WIDTHS.get(str(config.get("data_types", {}).get("grad_accum_dtype")), 0),
    )

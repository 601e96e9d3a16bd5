"""Where a DeepSpeed configuration puts what, and how large its buffers are: all of it that decides memory."""

import copy
from dataclasses import dataclass
from typing import Any

from thriftune.config.zero_file import offload_device
from thriftune.strategies.zero.configuration import with_buffers

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Layout:
    """What a DeepSpeed configuration says of memory.

    Attributes:
        stage: ZeRO stage.
        offloaded_optimizer: Where optimizer states go: none, cpu or nvme.
        offloaded_params: Where weights go: none, cpu or nvme.
        reduce_bucket: Elements of the buffer that gradients are reduced in.
        prefetch: Elements that stage 3 gathers ahead.
        live_parameters: Elements that stage 3 keeps gathered at once.
        sub_group: Elements that stage 3 steps at once.
        is_pinned: Whether what is offloaded is in page-locked memory.
        overlaps: Whether gradients are reduced while others are computed.
        gradient_width: Bytes of a summed gradient; 0 for those of the precision.
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


def layout(config: dict[str, Any], hidden_size: int) -> Layout:
    """Where a checked configuration puts what, and how large its buffers are.

    Args:
        config: A configuration that `check` found nothing wrong with.
        hidden_size: Width of the model, which "auto" buffers are sized by.
    """
    section = with_buffers(copy.deepcopy(config["zero_optimization"]), hidden_size)
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

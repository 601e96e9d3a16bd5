"""The sections of a run file about strategies: how weights are divided."""

from typing import Any

from pydantic import Field, field_validator

from thriftune.config import zero_file
from thriftune.config.choices import AUTO
from thriftune.config.data import Section
from thriftune.hardware import PrecisionChoice


class ZeroConfig(Section):
    """DeepSpeed ZeRO, for strategy zero."""

    config: str | dict[str, Any] = Field(
        default=AUTO,
        description="auto: the planner chooses among the files in deepspeed_configs/. Or the name of one of them "
        "(zero1, zero2, zero2_offload, zero3, zero3_offload), or the DeepSpeed configuration itself, as YAML. Batch "
        "sizes, precision and learning rate come from `training`.",
    )

    @field_validator("config")
    @classmethod
    def _integers(cls, config: str | dict[str, Any]) -> Any:
        return zero_file.with_integers(config)


class FsdpConfig(Section):
    """PyTorch's fully sharded data parallel (FSDP2), for strategy fsdp."""

    param_dtype: PrecisionChoice = Field(
        default="auto", description="Type that gathered weights are computed with; auto: training.precision."
    )
    reduce_dtype: PrecisionChoice = Field(
        default="auto",
        description="Type that gradients are summed in over the ranks; auto: fp32. 16 bits halve the traffic.",
    )
    wrap: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Classes of the modules whose weights are gathered together, such as LlamaDecoderLayer; when left "
        "out, the model's decoder layers.",
    )
    reshard_after_forward: bool = Field(
        default=True,
        description="Free gathered weights after the forward pass, and gather them again for the backward pass.",
    )
    cpu_offload: bool = Field(
        default=False, description="On GPUs: keep shards and optimizer states in host memory, and step there."
    )

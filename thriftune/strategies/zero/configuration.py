"""The complete DeepSpeed configuration of a run, made from one that `thriftune.config.zero_file` accepts.

Every number is written out before DeepSpeed sees it ("auto" is resolved here, not by the Trainer), because the
configuration is also needed before the Trainer exists, to partition the model while it loads.
"""

import copy
from dataclasses import dataclass
from typing import Any

from thriftune.batching import Batch
from thriftune.config import zero_file
from thriftune.config.zero_file import OWNED_KEYS, is_auto, offload_device, shown
from thriftune.errors import Problem
from thriftune.hardware import Precision

# Adam's temporaries are as large as one sub-group in fp32. DeepSpeed's default of 1e9 elements makes that a whole
# shard: 2.6 GB per rank more at the first step of a 0.5B model on 2 ranks than with this (benchmarks/zero3_loading.py).
SUB_GROUP_ELEMENTS = 25_000_000

# Starting loss scale 2**16 and a window of 1000 steps are DeepSpeed's and NVIDIA apex's defaults.
_FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2}


@dataclass(frozen=True)
class Optimization:
    """The optimizer's numbers that DeepSpeed's configuration needs too.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: Norm to which gradients are clipped.
    """

    learning_rate: float
    weight_decay: float
    max_grad_norm: float


def check(config: dict[str, Any], field: str) -> list[Problem]:
    """Check a DeepSpeed configuration: by our own rules, and if these hold, by DeepSpeed's model of its ZeRO section.

    Args:
        config: The parsed file, or the mapping from the YAML.
        field: Its key in the run file, for the messages.

    Returns:
        The problems.
    """
    return zero_file.check(config, field) or _check_with_deepspeed(config, field)


def _check_with_deepspeed(config: dict[str, Any], field: str) -> list[Problem]:
    """Find misspelt keys and wrong types. Importing DeepSpeed takes seconds."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    section = {key: value for key, value in config["zero_optimization"].items() if not is_auto(value)}
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        return [
            Problem(
                ".".join([field, "zero_optimization", *map(str, detail["loc"])]),
                shown(detail["input"]),
                f"DeepSpeed: {detail['msg']}.",
                "See its documentation of ZeRO optimizations.",
                code="zero-config-invalid",
            )
            for detail in error.errors(include_url=False)
        ]
    return []


def stage(config: dict[str, Any]) -> int:
    """The ZeRO stage of a checked configuration."""
    return int(config["zero_optimization"]["stage"])


def offloads_optimizer(config: dict[str, Any]) -> bool:
    """Whether optimizer states live in host memory."""
    return offload_device(config["zero_optimization"], "offload_optimizer") != "none"


def compiles_adam(config: dict[str, Any], *, is_gpu: bool) -> bool:
    """Whether a training uses DeepSpeed's own Adam, which is compiled at run time where the image does not contain it.

    It steps the optimizer states that a training on a GPU keeps in host memory. In a training on the CPU all states
    are there, and torch's Adam, which needs no compiler, does the same.

    Args:
        config: A DeepSpeed configuration.
        is_gpu: Whether it trains on GPUs.
    """
    return is_gpu and offloads_optimizer(config)


def complete(
    config: dict[str, Any],
    batch: Batch,
    precision: Precision,
    optimization: Optimization,
    hidden_size: int,
    *,
    is_gpu: bool,
    packing: int = 1,
) -> dict[str, Any]:
    """The configuration DeepSpeed trains with, with every number written out.

    Args:
        config: A configuration that `check` has accepted.
        batch: The batch of the run.
        precision: Precision of weights and gradients.
        optimization: AdamW's numbers.
        hidden_size: Width of the model, which decides the size of the communication buffers.
        is_gpu: Whether it trains on GPUs.
        packing: Weights of a layer in one element of a tensor: more than one in 4 bits.

    Returns:
        A new dictionary. Buffer sizes for "auto" are the ones that transformers documents for ZeRO-3:
        hidden**2, 0.9 * hidden**2 and 10 * hidden elements. At most two decoder layers are gathered at once.

    Source:
        https://huggingface.co/docs/transformers/deepspeed
    """
    result = {key: value for key, value in copy.deepcopy(config).items() if key not in OWNED_KEYS}
    result["train_batch_size"] = batch.global_batch
    result["train_micro_batch_size_per_gpu"] = batch.micro_batch
    result["gradient_accumulation_steps"] = batch.accumulation
    result["gradient_clipping"] = optimization.max_grad_norm
    result["fp16"] = dict(_FP16) if precision == "fp16" else {"enabled": False}
    result["bf16"] = {"enabled": precision == "bf16"}
    section = result["zero_optimization"]
    result["optimizer"] = {
        "type": "AdamW",
        "params": {
            "lr": optimization.learning_rate,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": optimization.weight_decay,
            "torch_adam": not compiles_adam(config, is_gpu=is_gpu),
        },
    }
    with_buffers(section, hidden_size, packing)
    if section["stage"] == 3:
        section["stage3_gather_16bit_weights_on_model_save"] = True  # without it no model could be saved
    return result


def with_buffers(section: dict[str, Any], hidden_size: int, packing: int = 1) -> dict[str, Any]:
    """Write out the size of every buffer that a ZeRO section leaves open, in elements.

    Args:
        section: The ZeRO section, which is changed in place.
        hidden_size: Width of the model.
        packing: As in `complete`.
    """
    _resolve_auto(section, {"reduce_bucket_size": hidden_size**2, "allgather_bucket_size": 2 * hidden_size**2})
    if section["stage"] == 3:
        section.setdefault("sub_group_size", SUB_GROUP_ELEMENTS)
        _resolve_auto(
            section,
            {
                "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
                "stage3_param_persistence_threshold": 10 * hidden_size,
                # Two decoder layers of about 12 * hidden**2 parameters: one in use while the next is fetched.
                "stage3_max_live_parameters": 24 * hidden_size**2 // packing,
                "stage3_max_reuse_distance": 24 * hidden_size**2 // packing,
            },
        )
    return section


def _resolve_auto(section: dict[str, Any], values: dict[str, int]) -> None:
    for key, value in values.items():
        if is_auto(section.get(key, "auto")):
            section[key] = value

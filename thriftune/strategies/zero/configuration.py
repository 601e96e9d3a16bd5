"""DeepSpeed configuration: what a ZeRO file may say, and the complete one a run trains with.

Every number is written out before DeepSpeed sees it ("auto" is resolved here, not by the Trainer), because the
configuration is also needed before the Trainer exists, to partition the model while it loads.
"""

import copy
import difflib
import json
from dataclasses import dataclass
from typing import Any

from thriftune.batching import Batch
from thriftune.errors import Problem
from thriftune.hardware import Precision

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_OWNED_KEYS = {
    **dict.fromkeys(BATCH_KEYS, "training.global_batch and training.micro_batch decide the batch"),
    "fp16": "training.precision decides the precision",
    "bf16": "training.precision decides the precision",
    "optimizer": "training.learning_rate and training.weight_decay configure AdamW",
    "scheduler": "training.scheduler decides the schedule",
    "gradient_clipping": "training.max_grad_norm decides the clipping",
}
_STAGES = (0, 1, 2, 3)
# Old names that DeepSpeed still turns into offload; nothing else here would know of them.
_OLD_OFFLOAD = {"cpu_offload": "offload_optimizer", "cpu_offload_params": "offload_param"}
# Source: https://www.deepspeed.ai/docs/config-json/
_KNOWN_KEYS = frozenset(_OWNED_KEYS) | {
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "communication_data_type", "compile",
    "csv_monitor", "data_efficiency", "data_types", "dump_state", "flops_profiler", "gradient_predivide_factor",
    "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type", "sparse_gradients",
    "steps_per_print", "tensorboard", "torch_autocast", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
}  # fmt: skip

# Adam's temporaries are as large as one sub-group in fp32. DeepSpeed's default of 1e9 elements makes that a whole
# shard: 2.6 GB per rank more at the first step of a 0.5B model on 2 ranks than with this (benchmarks/zero3_loading.py).
SUB_GROUP_ELEMENTS = 25_000_000

# Starting loss scale 2**16 and a window of 1000 steps are DeepSpeed's and NVIDIA apex's defaults.
_FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2}


@dataclass(frozen=True)
class Optimization:
    """The numbers of the optimizer that DeepSpeed's configuration repeats.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: Norm that gradients are clipped to.
    """

    learning_rate: float
    weight_decay: float
    max_grad_norm: float


def check(config: dict[str, Any], field: str) -> list[Problem]:
    """What is wrong with a DeepSpeed configuration.

    Args:
        config: The parsed file, or the mapping from the YAML.
        field: Where it stands, for the messages.

    Returns:
        The problems: keys that this package decides, a missing or unknown stage, contradictory offload.
    """
    problems = [
        _problem(f"{field}.{key}", _shown(config[key]), f"{reason}.", 'Remove the key, or write "auto".')
        for key, reason in _OWNED_KEYS.items()
        if key in config and not _is_auto(config[key])
    ]
    for key in sorted(config.keys() - _KNOWN_KEYS):
        close = difflib.get_close_matches(key, _KNOWN_KEYS, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else "Remove it; DeepSpeed ignores keys that it does not know."
        problems.append(_problem(f"{field}.{key}", _shown(config[key]), "is not a key of DeepSpeed's.", remedy))
    section = config.get("zero_optimization")
    if not isinstance(section, dict):
        problems.append(
            _problem(
                f"{field}.zero_optimization",
                _shown(section),
                "is missing or not a mapping.",
                "Add it, with `stage: 3`.",
            )
        )
        return problems
    return problems + _check_section(section, f"{field}.zero_optimization")


def check_with_deepspeed(config: dict[str, Any], field: str) -> list[Problem]:
    """What DeepSpeed itself finds wrong with the ZeRO section: misspelt keys and wrong types.

    Apart from `check`, because it imports DeepSpeed, which takes seconds.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    section = {key: value for key, value in config["zero_optimization"].items() if not _is_auto(value)}
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        return [
            _problem(
                ".".join([field, "zero_optimization", *map(str, detail["loc"])]),
                _shown(detail["input"]),
                f"DeepSpeed: {detail['msg']}.",
                "See its documentation of ZeRO optimizations.",
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
    """Whether a training steps by DeepSpeed's own Adam, which is compiled where the image has it not.

    It is for the states of a GPU's weights in host memory. On the CPU everything is there, and torch's Adam, which
    needs no compiler, does the same.

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
) -> dict[str, Any]:
    """The configuration DeepSpeed trains with, every number written out.

    Args:
        config: A configuration that `check` found nothing wrong with.
        batch: The batch of the run.
        precision: Precision of weights and gradients.
        optimization: AdamW's numbers.
        hidden_size: Width of the model, which the communication buffers are sized by.
        is_gpu: Whether it trains on GPUs.

    Returns:
        A new dictionary. Buffer sizes for "auto" are the ones that transformers documents for ZeRO-3:
        hidden**2, 0.9 * hidden**2 and 10 * hidden elements. What may be gathered at once is two decoder layers.

    Source:
        https://huggingface.co/docs/transformers/deepspeed
    """
    result = {key: value for key, value in copy.deepcopy(config).items() if key not in _OWNED_KEYS}
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
    with_buffers(section, hidden_size)
    if section["stage"] == 3:
        section["stage3_gather_16bit_weights_on_model_save"] = True  # or there is no model at the end
    return result


def with_buffers(section: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    """Write out the size of every buffer that a ZeRO section leaves open."""
    _resolve_auto(section, {"reduce_bucket_size": hidden_size**2, "allgather_bucket_size": 2 * hidden_size**2})
    if section["stage"] == 3:
        section.setdefault("sub_group_size", SUB_GROUP_ELEMENTS)
        _resolve_auto(
            section,
            {
                "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
                "stage3_param_persistence_threshold": 10 * hidden_size,
                # Two decoder layers of about 12 * hidden**2 parameters: one in use while the next is fetched.
                "stage3_max_live_parameters": 24 * hidden_size**2,
                "stage3_max_reuse_distance": 24 * hidden_size**2,
            },
        )
    return section


def _resolve_auto(section: dict[str, Any], values: dict[str, int]) -> None:
    for key, value in values.items():
        if _is_auto(section.get(key, "auto")):
            section[key] = value


def _check_section(section: dict[str, Any], field: str) -> list[Problem]:
    problems = [
        _problem(f"{field}.{old}", _shown(section[old]), "is an old name.", f"Write {new}: {{device: cpu}}.")
        for old, new in _OLD_OFFLOAD.items()
        if old in section
    ]
    if section.get("stage") not in _STAGES or isinstance(section.get("stage"), bool):
        problems.append(
            _problem(f"{field}.stage", _shown(section.get("stage")), "is not a ZeRO stage.", "Use 0, 1, 2 or 3.")
        )
    if section.get("stage3_gather_16bit_weights_on_model_save") is False:
        problems.append(
            _problem(
                f"{field}.stage3_gather_16bit_weights_on_model_save",
                "false",
                "leaves the trained model in shards that cannot be saved as one.",
                "Remove the key.",
            )
        )
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        device = offload_device(section, key)
        if device == "nvme" and "nvme_path" not in section[key]:
            problems.append(
                _problem(f"{field}.{key}", _shown(section[key]), "has no nvme_path.", "Add the folder to offload to.")
            )
        elif device not in ("none", "cpu", "nvme"):
            problems.append(
                _problem(f"{field}.{key}.device", str(device), "is not a place to offload to.", "Use cpu or none.")
            )
        elif device != "none" and section.get("stage") in range(lowest):
            problems.append(
                _problem(
                    f"{field}.{key}",
                    device,
                    f"needs ZeRO stage {lowest} or higher, and the stage is {section['stage']}.",
                    "Raise the stage, or remove the offload.",
                )
            )
    return problems


def offload_device(section: dict[str, Any], key: str) -> str:
    """Where a ZeRO section offloads to under a key: none, cpu or nvme."""
    offload = section.get(key)
    if offload is None:
        return "none"
    return str(offload.get("device", "none")) if isinstance(offload, dict) else str(offload)


def _is_auto(value: object) -> bool:
    """Whether a value is "auto" all the way down: `{"enabled": "auto"}` decides nothing either, nor does AdamW."""
    if isinstance(value, dict):
        return all(_is_auto(v) for v in value.values())
    return value in ("auto", "AdamW")


def _shown(value: object) -> str:
    return json.dumps(value, default=str)


def _problem(field: str, value: str, message: str, remedy: str) -> Problem:
    return Problem(field, value, message, remedy, code="zero-config-invalid")

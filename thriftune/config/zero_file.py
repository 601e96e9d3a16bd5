"""What a DeepSpeed configuration may contain, in a file of deepspeed_configs/ or inside a run file."""

import difflib
import json
from typing import Any

from thriftune.errors import Problem

_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OWNED_KEYS = {
    **dict.fromkeys(_BATCH_KEYS, "training.global_batch and training.micro_batch decide the batch"),
    "fp16": "training.precision decides the precision",
    "bf16": "training.precision decides the precision",
    "optimizer": "training.learning_rate and training.weight_decay configure AdamW",
    "scheduler": "training.scheduler decides the schedule",
    "gradient_clipping": "training.max_grad_norm decides the clipping",
}
_LARGEST_EXACT = 2**53  # up to here, a float stands for one integer
_STAGES = (0, 1, 2, 3)
# Old names that DeepSpeed still turns into offload; no other code here knows them.
_OLD_OFFLOAD = {"cpu_offload": "offload_optimizer", "cpu_offload_params": "offload_param"}
# Source: https://www.deepspeed.ai/docs/config-json/
_KNOWN_KEYS = frozenset(OWNED_KEYS) | {
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "communication_data_type", "compile",
    "csv_monitor", "data_efficiency", "data_types", "dump_state", "flops_profiler", "gradient_predivide_factor",
    "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type", "sparse_gradients",
    "steps_per_print", "tensorboard", "torch_autocast", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
}  # fmt: skip


def with_integers(value: Any) -> Any:
    """A DeepSpeed configuration in which whole numbers are integers, as in the file that they were written in.

    Flyte's console and launch plans send every number as a float: DeepSpeed would get stage 3.0, and the training would
    have another key in the cache.

    Args:
        value: The configuration, or a part of it.
    """
    if isinstance(value, dict):
        return {key: with_integers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_integers(part) for part in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT
    return int(value) if is_whole else value


def check(config: dict[str, Any], field: str) -> list[Problem]:
    """What is wrong with a DeepSpeed configuration.

    Args:
        config: The parsed file, or the mapping from the YAML.
        field: Its key or file, for the messages.

    Returns:
        The problems: keys that this package decides, a missing or unknown stage, contradictory offload.
    """
    problems = [
        _problem(f"{field}.{key}", shown(config[key]), f"{reason}.", 'Remove the key, or write "auto".')
        for key, reason in OWNED_KEYS.items()
        if key in config and not is_auto(config[key])
    ]
    for key in sorted(config.keys() - _KNOWN_KEYS):
        close = difflib.get_close_matches(key, _KNOWN_KEYS, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else "Remove it; DeepSpeed ignores keys that it does not know."
        problems.append(_problem(f"{field}.{key}", shown(config[key]), "is not a key of DeepSpeed.", remedy))
    section = config.get("zero_optimization")
    if not isinstance(section, dict):
        problems.append(
            _problem(
                f"{field}.zero_optimization",
                shown(section),
                "is missing or not a mapping.",
                "Add it, with `stage: 3`.",
            )
        )
        return problems
    return problems + _check_section(section, f"{field}.zero_optimization")


def _check_section(section: dict[str, Any], field: str) -> list[Problem]:
    problems = [
        _problem(f"{field}.{old}", shown(section[old]), "is an old name.", f"Write {new}: {{device: cpu}}.")
        for old, new in _OLD_OFFLOAD.items()
        if old in section
    ]
    if section.get("stage") not in _STAGES or isinstance(section.get("stage"), bool):
        problems.append(
            _problem(f"{field}.stage", shown(section.get("stage")), "is not a ZeRO stage.", "Use 0, 1, 2 or 3.")
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
                _problem(f"{field}.{key}", shown(section[key]), "has no nvme_path.", "Add the folder to offload to.")
            )
        elif device not in ("none", "cpu", "nvme"):
            problems.append(
                _problem(f"{field}.{key}.device", str(device), "is not a device to offload to.", "Use cpu or none.")
            )
        elif device != "none" and section.get("stage") in range(lowest):
            problems.append(
                _problem(
                    f"{field}.{key}",
                    device,
                    f"needs ZeRO stage {lowest} or higher, but the stage is {section['stage']}.",
                    "Raise the stage, or remove the offload.",
                )
            )
    return problems


def offload_device(section: dict[str, Any], key: str) -> str:
    """The device that a key of a ZeRO section offloads to: none, cpu or nvme."""
    offload = section.get(key)
    if offload is None:
        return "none"
    return str(offload.get("device", "none")) if isinstance(offload, dict) else str(offload)


def is_auto(value: object) -> bool:
    """Whether a value is "auto" at every level: `{"enabled": "auto"}` decides nothing either, nor does AdamW."""
    if isinstance(value, dict):
        return all(is_auto(v) for v in value.values())
    return value in ("auto", "AdamW")


def shown(value: object) -> str:
    """A value as JSON, for a message."""
    return json.dumps(value, default=str)


def _problem(field: str, value: str, message: str, remedy: str) -> Problem:
    return Problem(field, value, message, remedy, code="zero-config-invalid")

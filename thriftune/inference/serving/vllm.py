"""vLLM's own server in a manifest: its image, its arguments, and what it cannot serve.

Source: vLLM 0.8.5's documentation of LoRA adapters and of engine arguments, https://docs.vllm.ai/en/v0.8.5; not run
here. Its first engine runs on GPUs of capability 7.5, which its second one refuses
(https://github.com/vllm-project/vllm/issues/15853); this version still has both, and chooses by itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config.benchmark_run import BASE
from thriftune.errors import AdapterError, ConfigError, Problem
from thriftune.hardware import Device
from thriftune.inference.serving.containers import PORT, Container
from thriftune.models.adapter_weights import config_of
from thriftune.models.mixed_batch import batchable
from thriftune.planned_node import EvaluationNode
from thriftune.planning.served_adapters import slot_rank
from thriftune.planning.serving import UTILIZATION, Served

if TYPE_CHECKING:
    from peft import PeftConfig

IMAGE = "vllm/vllm-openai:v0.8.5.post1"
LEAST_CAPABILITY = (7, 5)
_DTYPES = {"fp16": "half", "bf16": "bfloat16", "fp32": "float32"}
# It multiplies every layer by alpha / r of the adapter, whatever these say of single layers.
_PATTERNS = ("rank_pattern", "alpha_pattern")


def require_servable(device: Device, served: Served, configurations: Mapping[str, Path]) -> None:
    """Refuse what vLLM cannot serve.

    Args:
        device: The kind of device.
        served: What is served.
        configurations: Directories of the adapters by name.

    Raises:
        ConfigError: The device is none that it runs on, or too old.
        AdapterError: Names each adapter that it cannot serve, and why.
    """
    if not device.is_gpu or device.compute_capability < LEAST_CAPABILITY:
        major, minor = device.compute_capability if device.is_gpu else (0, 0)
        what = f"has compute capability {major}.{minor}" if device.is_gpu else "is no GPU"
        message = f"{what}; vLLM's image serves adapters from 7.5 on."
        raise ConfigError.single("hardware.device", device.name, message, "Use a later GPU, or our own server.")
    missing = sorted({adapter.name for adapter in served.adapters} - configurations.keys())
    if missing:
        message = f"there is no adapter {missing[0]} to look at."
        raise AdapterError.single("adapters", ", ".join(missing), message, "Name the directory of each adapter.")
    if problems := list(_problems(configurations)):
        raise AdapterError(problems)


def _problems(configurations: Mapping[str, Path]) -> Iterator[Problem]:
    for name, directory in configurations.items():
        field = f"adapters.{name}"
        if reason := unservable(config_of(directory, field)):
            remedy = "Merge it into a model of its own, or use our own server."
            yield Problem(field, str(directory), f"vLLM cannot serve it: {reason}.", remedy)


def unservable(config: "PeftConfig") -> str:
    """Why vLLM cannot serve an adapter; empty if it can.

    Args:
        config: Its configuration.
    """
    if reason := batchable(config):  # vLLM refuses the same kinds, for reasons of its own
        return reason
    if getattr(config, "lora_bias", False):
        return "its adapters have biases"
    # peft marks the fields that make LoRA compute something else; vLLM passes over those that it does not know.
    variants = [each.name for each in fields(config) if each.metadata.get("is_lora_variant")]
    found = next((name for name in (*_PATTERNS, *variants, "use_qalora") if getattr(config, name, None)), "")
    return f"it has {found}, which vLLM does not read" if found else ""


def container(served: Served, node: EvaluationNode, base: str, adapters: Mapping[str, str], secret: str) -> Container:
    """The container of vLLM's server.

    Args:
        served: What it serves.
        node: The node that it runs on.
        base: Folder of the base model in the pod.
        adapters: Folders of the adapters there, by name.
        secret: Name of the Secret with the key that clients have to send.
    """
    flags = {
        "--model": base,
        "--served-model-name": BASE,
        "--host": "0.0.0.0",  # noqa: S104 - a pod's only address; a key is asked for
        "--port": PORT,
        "--dtype": _DTYPES[node.precision],
        "--max-model-len": served.tokens,
        "--max-num-seqs": served.sequences,
        "--gpu-memory-utilization": UTILIZATION,
        "--tensor-parallel-size": node.devices,
    }
    if served.bits == 4:  # quantized while it loads: the files are those of the plain model
        flags |= {"--quantization": "bitsandbytes", "--load-format": "bitsandbytes"}
    args = [text for flag, value in flags.items() for text in (flag, str(value))]
    if adapters:
        slots = ["--max-loras", str(len(adapters)), "--max-lora-rank", str(slot_rank(served.adapters))]
        args += ["--enable-lora", *slots, "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    return Container(IMAGE, args, "/health", env=_environment(secret))


def _environment(secret: str) -> list[dict[str, Any]]:
    """Its variables: the key comes from a Secret, and caches go where a user without a name may write."""
    key = {"secretKeyRef": {"name": secret, "key": "api-key"}}
    plain = {
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod's own
        "USER": "vllm",  # torch asks for the user's name, which the image does not know
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "False",  # no request loads an adapter from a path
    }
    return [{"name": "VLLM_API_KEY", "valueFrom": key}, *({"name": n, "value": v} for n, v in plain.items())]

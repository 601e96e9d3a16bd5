"""The plan of a run: what the configuration says, with everything that follows from it worked out."""

import json
from dataclasses import dataclass
from typing import Any

from thriftune import zero
from thriftune.batching import Batch, split_batch
from thriftune.config import Method, RunConfig
from thriftune.data.sources import TABLE
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import DEVICES, Device, Precision, choose_precision


@dataclass(frozen=True)
class TrainingPlan:
    """What a run trains on and how.

    Attributes:
        method: full or qlora.
        device: Key of the device in `thriftune.hardware.DEVICES`.
        nodes: Machines.
        devices_per_node: GPUs per machine (worker processes on CPU).
        processes_per_node: Training processes per machine: one per device under ZeRO, one for QLoRA.
        precision: fp32, fp16 or bf16.
        global_batch: Rows per optimizer step.
        micro_batch: Rows per rank and forward pass.
        accumulation: Forward passes per optimizer step.
        zero_stage: ZeRO stage; 0 for QLoRA.
        deepspeed: The DeepSpeed configuration as JSON text, as the file or the YAML says it; empty for QLoRA.
        model_version: What `thriftune.models.version` said of the base model.
        data_version: What `thriftune.data.sources.versions` said of the data.
    """

    method: Method
    device: str
    nodes: int
    devices_per_node: int
    processes_per_node: int
    precision: Precision
    global_batch: int
    micro_batch: int
    accumulation: int
    zero_stage: int
    deepspeed: str
    model_version: str
    data_version: str

    @property
    def batch(self) -> Batch:
        """The global batch and how it is cut."""
        ranks = self.nodes * self.processes_per_node
        return Batch(self.global_batch, self.micro_batch, self.accumulation, ranks)

    @property
    def hardware(self) -> Device:
        """The device to train on."""
        return DEVICES[self.device]

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The DeepSpeed configuration, parsed."""
        config: dict[str, Any] = json.loads(self.deepspeed)
        return config


def require_method(config: RunConfig, method: Method) -> None:
    """Refuse a configuration that was written for the other workflow.

    Raises:
        ConfigError: The method is another one.
    """
    if config.method != method:
        workflow = "full_finetune" if config.method == "full" else "qlora_finetune"
        raise ConfigError.single(
            "method",
            config.method,
            f"this workflow runs method {method}.",
            f"Run `pyflyte run workflows/{workflow}.py {workflow} --config ...` instead.",
        )


def require_table(config: RunConfig, *, has_table: bool) -> None:
    """Refuse a workflow that was given a table its run does not read, or none that it reads.

    Args:
        config: The run.
        has_table: Whether the workflow was given one.

    Raises:
        ConfigError: One is there without the other.
    """
    named = [source.source for source in config.data.all_sources]
    if (TABLE in named) == has_table:
        return
    workflow = "full_finetune" if config.method == "full" else "qlora_finetune"
    if has_table:
        raise ConfigError.single(
            "data.source", ", ".join(named), "leaves out the table that was given.", f"Write source: {TABLE}."
        )
    raise ConfigError.single(
        "data.source",
        TABLE,
        f"is the table given to a workflow, and {workflow} takes none.",
        f"Run `pyflyte run workflows/{workflow}.py {workflow}_on_table --config ... --table ...`.",
    )


def require_local_hardware(config: RunConfig, present: Device, gpus: int) -> None:
    """Refuse a run on this machine that it cannot carry out.

    Args:
        config: The run.
        present: The device of this machine.
        gpus: How many of them it has; any number of processes may share a CPU.

    Raises:
        ConfigError: Several nodes (they would wait for each other for ever), or another device than is present.
    """
    problems = []
    if config.hardware.nodes > 1:
        problems.append(
            Problem(
                "hardware.nodes",
                str(config.hardware.nodes),
                "a local run has one node.",
                "Use nodes: 1, or add --remote to run on a cluster.",
            )
        )
    if config.hardware.device != present.name:
        problems.append(
            Problem(
                "hardware.device",
                config.hardware.device,
                f"this machine has {present.name}.",
                f"Use device: {present.name}, or add --remote to run on a cluster.",
            )
        )
    elif present.is_gpu and config.hardware.devices_per_node > gpus:
        problems.append(
            Problem(
                "hardware.devices_per_node",
                str(config.hardware.devices_per_node),
                f"this machine has {gpus} GPUs.",
                f"Use at most {gpus}, or add --remote to run on a cluster.",
            )
        )
    if problems:
        raise ConfigError(problems)


def make_plan(
    config: RunConfig, deepspeed: dict[str, Any] | None, *, model_version: str, data_version: str
) -> TrainingPlan:
    """Work out what a run trains on and how.

    Args:
        config: The run; its own rules hold already.
        deepspeed: The DeepSpeed configuration that `zero.config` names; None for QLoRA.
        model_version: Version of the base model.
        data_version: Version of the data.

    Returns:
        The plan.

    Raises:
        ConfigError: The DeepSpeed configuration is not valid, or decides what the run decides.
    """
    problems = []
    if deepspeed is not None:
        problems = zero.check(deepspeed, "zero.config") or zero.check_with_deepspeed(deepspeed, "zero.config")
    if problems:
        raise ConfigError(problems)
    training, hardware = config.training, config.hardware
    batch = split_batch(training.global_batch, training.micro_batch, config.data_parallel_size)
    return TrainingPlan(
        method=config.method,
        device=hardware.device,
        nodes=hardware.nodes,
        devices_per_node=hardware.devices_per_node,
        processes_per_node=hardware.devices_per_node if config.method == "full" else 1,
        precision=choose_precision(training.precision, DEVICES[hardware.device]),
        global_batch=batch.global_batch,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        zero_stage=zero.stage(deepspeed) if deepspeed is not None else 0,
        deepspeed=json.dumps(deepspeed, sort_keys=True) if deepspeed is not None else "",
        model_version=model_version,
        data_version=data_version,
    )

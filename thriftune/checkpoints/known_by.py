"""What the cached steps of a run are known by: all that changes what a step makes, and nothing else.

A training is known by what its checkpoints are known by (`thriftune.checkpoints.identity`), and by what decides which
of its weights are kept, how they are stored, and which validations its result holds.

What does not count is not done again for a run that is served: its losses are at the steps that `log_every` of the run
that trained gave, nothing is reported to Weights & Biases, and it has no checkpoints of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from thriftune import artifacts
from thriftune.checkpoints import identity
from thriftune.checkpoints.resume_from import RESUME_FROM
from thriftune.config import ModelConfig, RunConfig, Section
from thriftune.config.choices import METHODS
from thriftune.data.general import general_digest
from thriftune.planned_node import EvaluationNode
from thriftune.redaction import redacted, unsigned
from thriftune.training_plan import TrainingPlan

# How a key of the run file counts in what a training is known by: by its value; by its value where every weight trains,
# else in what the merged model is known by; by what the plan makes of it; by the base model, or the prepared rows, that
# it leads to; or not at all.
Counts = Literal["itself", "weights", "plan", "model", "data", "not"]

# Every key is decided here; a section stands for all of its keys. A test fails for a key that is not in this table.
DECIDED: Mapping[str, Counts] = {
    "name": "not",
    "method": "itself",
    "strategy": "plan",
    "seed": "itself",
    "model.source": "model",
    "model.revision": "model",  # as the version that it stands for
    "model.trust_remote_code": "model",
    "data": "data",
    "plan": "not",  # what it leads to is the plan's
    "hardware.device": "plan",
    "hardware.instance": "plan",  # as its kind of device
    "hardware.nodes": "plan",
    "hardware.devices_per_node": "plan",
    "training.global_batch": "plan",
    "training.micro_batch": "plan",
    "training.epochs": "itself",
    "training.max_steps": "itself",
    "training.learning_rate": "itself",
    "training.scheduler": "itself",
    "training.warmup_share": "itself",
    "training.weight_decay": "itself",
    "training.max_grad_norm": "itself",
    "training.optimizer": "itself",
    "training.precision": "plan",
    "training.gradient_checkpointing": "not",  # the same numbers, computed twice
    "training.save_dtype": "weights",  # an adapter is stored as it trained
    "training.group_by_length": "itself",
    "training.log_every": "not",
    "training.on_divergence": "itself",
    "training.stall_timeout": "not",
    "training.keep": "itself",
    "training.patience": "itself",
    "training.report_to": "not",
    "task": "itself",
    "zero.config": "plan",
    "fsdp": "plan",
    "partial": "itself",
    "prefix": "itself",
    "llama_adapter": "itself",
    "classification": "itself",
    "lora.rank_patterns": "itself",
    "lora.variant": "itself",
    "lora.init": "itself",
    "lora.bias": "itself",
    "lora.modules_to_save": "itself",
    "lora.rank": "itself",
    "lora.alpha": "itself",
    "lora.dropout": "itself",
    "lora.target_modules": "itself",
    "lora.double_quantization": "itself",
    "lora.resume_from": "itself",  # and the present version of what is there
    "lora.merge": "not",
    "checkpoints.every_steps": "not",
    "checkpoints.every_minutes": "not",
    "checkpoints.keep_checkpoints": "not",
    "checkpoints.resume_from": "itself",  # whose steps were not trained by this file
    "evaluation.every_steps": "itself",
    "evaluation.saved_model": "not",
    "evaluation.watch_general": "itself",  # and the general questions
    "evaluation.max_rows": "itself",
    "evaluation.batch": "not",
    "evaluation.prompts": "not",
    "evaluation.max_new_tokens": "not",
    "benchmarks": "not",
    "export": "not",  # what is exported is made anew each time
    "publish": "not",
}


def model(source: ModelConfig, version: str) -> str:
    """What a fetched base model is known by, whatever the signature of its URL.

    Args:
        source: The model section of a run.
        version: Version of the source, as `thriftune.models.fetching.version` gives it.
    """
    return _key("model", [redacted(unsigned(source.source)), version, source.trust_remote_code])


def training(config: RunConfig, plan: TrainingPlan, *, base: str, dataset: str, start: str) -> str:
    """What a training is known by.

    Args:
        config: The run.
        plan: Its plan.
        base: What its base model is known by.
        dataset: Fingerprint of its prepared rows, as `thriftune.data.prepare.fingerprint` gives it.
        start: Present version of the adapter that it continues; empty if there is none.
    """
    counted = ("itself", "weights") if METHODS[config.method].trains_weights else ("itself",)
    values = {name: value for name, value in _values(config) if DECIDED.get(name) in counted}
    resumed = config.checkpoints.resume_from
    values[RESUME_FROM] = redacted(unsigned(resumed)) if resumed else None
    if config.evaluation.watch_general:
        values["general"] = general_digest()
    else:  # as before there was such a key, so that what was trained then is found
        del values["evaluation.watch_general"]
    if config.training.max_steps:
        values["training.epochs"] = None  # not read then
    # In the form that checkpoints have it, where values that are written differently may be the same.
    values |= identity.of(config, plan, model=base, dataset=dataset, rows=None)
    return _key("training", [values, plan.fingerprint, start])


def merging(config: RunConfig, trained: str) -> str:
    """What a merged model is known by: its base, seed and rows are those of the adapter's training.

    Args:
        config: The run.
        trained: What the adapter is known by, with its generation.
    """
    return _key("merging", [trained, config.training.save_dtype])


def measuring(config: RunConfig, plan: TrainingPlan, *, measured: str, dataset: str, as_trained: bool) -> str:
    """What the measurements and answers of a finished model are known by.

    Args:
        config: The run.
        plan: The plan with the node that it is measured on.
        measured: What the model or adapter is known by, with its generation.
        dataset: Fingerprint of the prepared rows.
        as_trained: Whether it is held as it trained, in 4 bits for QLoRA.
    """
    asked = config.evaluation
    held = [config.method, config.lora_or_default.double_quantization] if as_trained else []
    there = [plan.device, plan.devices_per_node, plan.precision]
    general = [general_digest()] if asked.watch_general else []
    measures = [asked.max_rows, asked.prompts, asked.max_new_tokens, *general]
    return _key("measuring", [measured, dataset, held, there, *measures])


def benchmarking(
    node: EvaluationNode, *, model: str, adapter: str, held: Sequence[bool], shard: Sequence[str | int]
) -> str:
    """What the results of one shard of a benchmark are known by: nothing of a tuned model where the base is measured.

    Args:
        node: What it runs on, of which the device, the number of them and the precision count.
        model: What the model is known by.
        adapter: What the adapter on it is known by; empty if there is none.
        held: How the model is held in 4 bits; empty if it is not.
        shard: Which items, how they are asked, and how often they were before.
    """
    return _key("benchmarking", [model, adapter, held, [node.device, node.devices, node.precision], shard])


def _values(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a section by their keys in the run file; sections that are left out have their defaults."""
    for name in type(section).model_fields:
        value = getattr(section, f"{name}_or_default", getattr(section, name))
        if isinstance(value, Section) and f"{prefix}{name}" not in DECIDED:
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _key(what: str, parts: list[Any]) -> str:
    return artifacts.key_of(what, json.dumps(parts, sort_keys=True, default=Section.model_dump))

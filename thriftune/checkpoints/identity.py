"""The identity of a training: everything that decides what it makes. A run resumes only from checkpoints of its own.

What may change between attempts is not a part of it: ranks, micro batch and accumulation, skipped batches.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from thriftune.batching import steps_per_epoch, total_steps
from thriftune.config import RunConfig
from thriftune.errors import Problem
from thriftune.methods import METHODS
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

# By key of the run file; values as in JSON.
Identity = Mapping[str, Any]

# Keys of `training`. The others decide where and how fast a model trains, what is logged and how the result is stored.
_OF_TRAINING = (
    "learning_rate", "scheduler", "warmup_share", "weight_decay", "max_grad_norm", "optimizer", "group_by_length"
)  # fmt: skip
_MODEL, _DATA, _STEPS, _ZERO = "model.source", "data", "training.max_steps", "zero.config"
_IN_MANIFEST = "identity"
# What manifests of older versions contain, and under which name.
_OLD_NAMES = {
    "method": "method", "base model": _MODEL, "dataset": _DATA, "global batch": "training.global_batch", "seed": "seed"
}  # fmt: skip


def of(config: RunConfig, plan: TrainingPlan, *, model: str, dataset: str, rows: int | None) -> Identity:
    """The identity of a training, as far as it is known yet.

    Args:
        config: The run.
        plan: Its plan.
        model: Version of the model's source, as `thriftune.models.fetching.version` gives it; empty if not known.
        dataset: Fingerprint of the prepared dataset; empty if not known.
        rows: Number of token rows to train on; None if not known.
    """
    training = config.training
    identity: dict[str, Any] = {
        "method": config.method,
        "seed": config.seed,
        "training.global_batch": plan.global_batch,
        "training.precision": plan.precision,
        **{f"training.{name}": getattr(training, name) for name in _OF_TRAINING},
        # The losses that a checkpoint holds are compared with later ones, of the same rows.
        "evaluation.max_rows": config.evaluation.max_rows,
    }
    identity |= METHODS[config.method].identity(config)
    identity |= STRATEGIES[plan.strategy].identity(plan.settings)
    if model:
        identity[_MODEL] = model
    if dataset:
        identity[_DATA] = dataset
    if rows is not None or training.max_steps:
        per_epoch = steps_per_epoch(rows or 0, plan.global_batch)
        identity[_STEPS] = total_steps(per_epoch, training.epochs, training.max_steps)
    return identity


def in_manifest(identity: Identity) -> dict[str, Any]:
    """An identity as the manifest of a checkpoint holds it."""
    return {_IN_MANIFEST: dict(identity)}


@dataclass(frozen=True)
class Comparison:
    """A training compared with the one that wrote a checkpoint.

    Attributes:
        problems: Differences that are not allowed.
        remarks: Sentences about allowed differences, with the value that is used, and about what cannot be compared.
    """

    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]


def compare(own: Identity, content: Mapping[str, Any], step: int, *, place: str, or_else: str) -> Comparison:
    """Compare a training with the one that wrote a checkpoint.

    Args:
        own: Identity of the training that would resume.
        content: The checkpoint's manifest without its files.
        step: Optimizer step of the checkpoint.
        place: Where the checkpoint is.
        or_else: What a person can do instead of using the checkpoint's value, such as: start again.

    Returns:
        The differences. If the number of steps differs, the run's number is used, provided the learning rate up to the
        checkpoint was the same. For a checkpoint of another method, the method is the only difference named.
    """
    saved = content.get(_IN_MANIFEST)
    if saved is None:
        saved = {new: content[old] for old, new in _OLD_NAMES.items() if old in content}
    where = f"the checkpoint of step {step} in {place}"
    differing = [name for name in own if name in saved and saved[name] != own[name] and name != _STEPS]
    if "method" in differing:
        differing = ["method"]
    problems = [_problem(name, own[name], saved[name], where, or_else) for name in differing]
    remarks = []
    if _STEPS in own and "method" not in differing:
        problems += _of_steps(own, saved, step, where, or_else)
        if saved.get(_STEPS, own[_STEPS]) != own[_STEPS] and not problems:
            remarks.append(f"{_STEPS}: the run's {own[_STEPS]} steps are used; {where} is of a run of {saved[_STEPS]}.")
    if unknown := [name for name in own if name not in saved]:
        remarks.append(
            f"{where[0].upper()}{where[1:]} was written by an older version, without {', '.join(unknown)}. "
            "These cannot be compared, and must be as in the run that wrote it."
        )
    return Comparison(tuple(problems), tuple(remarks))


def _problem(name: str, own: Any, saved: Any, where: str, or_else: str) -> Problem:
    theirs = _shown(saved)
    message, remedy = f"{where} was trained with {theirs}.", f"Use {theirs}"
    if name == _MODEL:
        message, remedy = f"{where} is of another base model, or of another version of it ({theirs}).", "Use that one"
    elif name == _DATA:
        message = f"{where} was trained on other rows, or on the same rows in another form (fingerprint {theirs})."
        remedy = "Use the data section of the run that wrote it, with unchanged data"
    elif name == _ZERO:
        message = f"{where} was written under ZeRO stage {theirs}; stage {own}, which this run uses, cannot read it."
        remedy = f"Use a configuration of stage {theirs}"
    return Problem(name, _shown(own), message, f"{remedy}, or {or_else}.", code="checkpoint-differs")


def _of_steps(own: Identity, saved: Identity, step: int, where: str, or_else: str) -> Iterator[Problem]:
    """Problems of another number of steps: none if the learning rate does not depend on it, and no more are done."""
    steps = own[_STEPS]
    before = saved.get(_STEPS, steps)
    if steps < step:
        message = f"{where} has done more steps already."
        yield Problem(_STEPS, str(steps), message, f"Train {step} or more, or {or_else}.", code="checkpoint-differs")
    elif steps != before:
        warmup = math.ceil(max(steps, before) * own["training.warmup_share"])
        if own["training.scheduler"] == "constant" and step >= warmup:
            return
        message = f"{where} is of a run of {before} steps, on which its learning rate depends."
        remedy = (
            f"Train {before}; to train longer, start a run from the finished model (lora.resume_from or model.source)"
        )
        yield Problem(_STEPS, str(steps), message, f"{remedy}; or {or_else}.", code="checkpoint-differs")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)

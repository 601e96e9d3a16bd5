"""What decides a training: of two that agree in all of it, one may go on from a checkpoint of the other.

What a training changes of itself between attempts is no part of it: ranks, micro batch and accumulation, batches that
are left out.
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

# By the key of the run file that decides it; values as JSON has them.
Identity = Mapping[str, Any]

# Of `training`: the rest decides where and how fast it trains, what is logged and how the result is stored.
_OF_TRAINING = (
    "learning_rate", "scheduler", "warmup_share", "weight_decay", "max_grad_norm", "optimizer", "group_by_length"
)  # fmt: skip
_MODEL, _DATA, _STEPS, _ZERO = "model.source", "data", "training.max_steps", "zero.config"
_IN_MANIFEST = "identity"
# What the manifests of versions before it said, and under which name.
_OLD_NAMES = {
    "method": "method", "base model": _MODEL, "dataset": _DATA, "global batch": "training.global_batch", "seed": "seed"
}  # fmt: skip


def of(config: RunConfig, plan: TrainingPlan, *, model: str, dataset: str, rows: int | None) -> Identity:
    """The identity of a training, as far as it is known.

    Args:
        config: The run.
        plan: Its plan.
        model: What its source holds, as `thriftune.models.fetching.version` says; empty: not known.
        dataset: Fingerprint of the prepared dataset; empty: not known.
        rows: Token rows to train on; None: not known.
    """
    training = config.training
    identity: dict[str, Any] = {
        "method": config.method,
        "seed": config.seed,
        "training.global_batch": plan.global_batch,
        "training.precision": plan.precision,
        **{f"training.{name}": getattr(training, name) for name in _OF_TRAINING},
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
    """A training beside the one that a checkpoint is of.

    Attributes:
        problems: What must not differ, and does.
        remarks: What differs and may, or could not be compared; and which value holds. Sentences.
    """

    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]


def compare(own: Identity, content: Mapping[str, Any], step: int, *, place: str, or_else: str) -> Comparison:
    """Compare a training with the one that a checkpoint is of.

    Args:
        own: Identity of the training that would go on.
        content: What the checkpoint's manifest says besides its files.
        step: Of the checkpoint.
        place: Where it is.
        or_else: What a person can do but to write the checkpoint's value, as: begin anew.

    Returns:
        The differences. Of a number of steps that differs the run's holds, where the learning rate up to the checkpoint
        was the same; a checkpoint of another method is told by that alone.
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
            remarks.append(f"{_STEPS}: the run's {own[_STEPS]} steps hold; {where} was to be one of {saved[_STEPS]}.")
    if unknown := [name for name in own if name not in saved]:
        remarks.append(
            f"{where[0].upper()}{where[1:]} was written by an older version, which did not note {', '.join(unknown)}. "
            "They could not be compared, and must be those of the run that wrote it."
        )
    return Comparison(tuple(problems), tuple(remarks))


def _problem(name: str, own: Any, saved: Any, where: str, or_else: str) -> Problem:
    theirs = _shown(saved)
    message, remedy = f"{where} was trained with {theirs}.", f"Write {theirs}"
    if name == _MODEL:
        message, remedy = f"{where} is of another base model, or another version of it ({theirs}).", "Use that one"
    elif name == _DATA:
        message = f"{where} was trained on other rows, or on the same in another form (fingerprint {theirs})."
        remedy = "Use the data section of the run that wrote it, on data that did not change"
    elif name == _ZERO:
        message = f"{where} was written under ZeRO stage {theirs}, and this run has stage {own}, which cannot read it."
        remedy = f"Name a configuration of stage {theirs}"
    return Problem(name, _shown(own), message, f"{remedy}, or {or_else}.", code="checkpoint-differs")


def _of_steps(own: Identity, saved: Identity, step: int, where: str, or_else: str) -> Iterator[Problem]:
    """Another number of steps: fine where the learning rate does not depend on it, and none is done already."""
    steps = own[_STEPS]
    before = saved.get(_STEPS, steps)
    if steps < step:
        message = f"{where} has more steps behind it."
        yield Problem(_STEPS, str(steps), message, f"Train {step} or more, or {or_else}.", code="checkpoint-differs")
    elif steps != before:
        warmup = math.ceil(max(steps, before) * own["training.warmup_share"])
        if own["training.scheduler"] == "constant" and step >= warmup:
            return
        message = f"{where} is of a run of {before} steps, by which its learning rate rose and fell."
        remedy = (
            f"Train {before}; to train longer, begin a run from the finished model (lora.resume_from or model.source)"
        )
        yield Problem(_STEPS, str(steps), message, f"{remedy}; or {or_else}.", code="checkpoint-differs")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)

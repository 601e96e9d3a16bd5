"""Rules over the section `sweep` and the run that its trials change."""

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from thriftune.config import gate_rules
from thriftune.config.formats import TABLE
from thriftune.config.trials import (
    LONGEST_SWEEP_NAME,
    MOST_TRIALS,
    WAYS,
    all_keys,
    field_of,
    given_settings,
    number_of_trials,
    numbers_of,
    section_of,
    shown,
    trial_of,
)
from thriftune.errors import ConfigError, Problem

if TYPE_CHECKING:
    from thriftune.config.sweep import RangeConfig, SweepRun

# Validations of a run whose file does not say how often: at each tenth of its steps.
_USUAL_VALIDATIONS = 10
_LEARNS_NOTHING = "changes nothing of what is learnt, so that trials would be equal."
# Keys that no trial may set, or sections of them, and why.
REFUSED = {
    "name": "is the sweep's: each trial is called after it and its number.",
    "publish": "is for one result, and a sweep has many.",
    "export": "is for one result, and a sweep has many.",
    "benchmarks": "must be the same for all trials, or they could not be compared.",
    "evaluation": "must be the same for all trials, or they could not be compared.",
    "hardware": "must be the same for all trials: the planner chooses the nodes for all of them.",
    "plan": "must be the same for all trials: the planner chooses the nodes for all of them.",
    "checkpoints": _LEARNS_NOTHING,
    "training.gradient_checkpointing": _LEARNS_NOTHING,
    "training.log_every": _LEARNS_NOTHING,
    "training.stall_timeout": _LEARNS_NOTHING,
    "training.report_to": "must be the same for all trials.",
    "lora.merge": "is for one result: if the run says so, the best is merged at the end.",
}
# What has to be allowed by name, by the keys that it stands for, and what each other value costs.
_ALLOWED = {
    "data": (("data", "task", "classification"), "prepares a dataset of its own, whose held-out rows may be others"),
    "seed": (("seed",), "prepares a dataset of its own, whose held-out rows are others"),
    "model": (("model",), "fetches a model of its own, and tokenizes the data for it"),
}


def check(run: "SweepRun") -> Iterator[Problem]:
    """Every problem of a sweep that its file shows before a trial is made."""
    yield from _way(run)
    yield from _keys(run)
    yield from _size(run)
    yield from _ranges(run)
    yield from _metric(run)
    yield from _run(run)


def of_trials(run: "SweepRun") -> Iterator[Problem]:
    """Every problem of the trials: values that cannot be, and trials that are equal.

    Of ranges, the ends and the listed values are tried, one key at a time.

    Args:
        run: A sweep without other problems.
    """
    settings = given_settings(run)
    if not settings:
        middle = {key: _values(drawn)[0] for key, drawn in run.sweep.ranges.items()}
        settings = [{**middle, key: value} for key, drawn in run.sweep.ranges.items() for value in _values(drawn)]
    seen: dict[str, int] = {}
    said: set[tuple[str, str, str]] = set()
    decided: list[int | None] = []
    for number, values in enumerate(settings):
        try:
            trial = trial_of(run, number, values)
        except ConfigError as error:
            for problem in error.problems:
                what = (problem.field, problem.value, problem.remedy)
                if what not in said:  # each value of a grid is in many trials
                    said.add(what)
                    yield problem
            continue
        training, evaluation = trial.config.training, trial.config.evaluation
        decided.append(validations_before_end(training.max_steps, evaluation.every_steps))
        content = trial.config.model_dump_json(exclude={"name"})
        if content in seen and not run.sweep.ranges:
            remedy = "Change one of them, or leave it out."
            yield Problem("sweep", f"trial {number}", f"is equal to trial {seen[content]}.", remedy)
        seen.setdefault(content, number)
    yield from _halving(run, decided)


def validations_before_end(steps: int | None, every_steps: int | None) -> int | None:
    """How often a training validates before its last step, after which nothing stops it; None if that is not known.

    Args:
        steps: Its optimizer steps; None if they are not known.
        every_steps: Steps between two validations; None where the file does not say it.
    """
    if every_steps is None:
        return _USUAL_VALIDATIONS - 1 if steps is None else min(_USUAL_VALIDATIONS, steps) - 1
    return None if steps is None else (steps - 1) // every_steps


def _halving(run: "SweepRun", decided: Sequence[int | None]) -> Iterator[Problem]:
    """Whether halving can stop a trial.

    Args:
        run: The sweep.
        decided: For each trial, the validations that may stop it; None where their number is not known.
    """
    halving, known = run.sweep.halving, [count for count in decided if count is not None]
    if halving is None or not known or len(known) < len(decided) or max(known) >= halving.first:
        return
    message = f"stops no trial: before its last step, none validates more than {max(known)} times."
    remedy = "Lower it, validate more often (evaluation.every_steps), or train longer."
    yield Problem("sweep.halving.first", str(halving.first), message, remedy)


def _values(drawn: "RangeConfig | tuple[Any, ...]") -> list[Any]:
    return list(drawn) if isinstance(drawn, tuple) else [_whole(drawn.low), _whole(drawn.high)]


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _way(run: "SweepRun") -> Iterator[Problem]:
    sweep = run.sweep
    given = [way for way in WAYS if getattr(sweep, way)]
    if len(given) != 1:
        message = "several ways to name trials are given." if given else "names no trial."
        yield Problem("sweep", ", ".join(given), message, f"Give one of {', '.join(WAYS)}.")
    if sweep.sampler == "tpe" and not sweep.ranges:
        message = "draws from ranges, and there are none."
        yield Problem("sweep.sampler", "tpe", message, "Give ranges, or leave sampler out.")
    elif sweep.sampler == "tpe" and sweep.parallel is None:
        message = "is missing: tpe draws so many trials, and learns from them before it draws the next."
        yield Problem("sweep.parallel", "", message, "Add it, such as parallel: 4.")
    if sweep.ranges and sweep.trials is None:
        yield Problem("sweep.trials", "", "is missing.", "Say how many trials are drawn from ranges, such as 20.")


def _keys(run: "SweepRun") -> Iterator[Problem]:
    sweep = run.sweep
    for number, override in enumerate(sweep.overrides):
        for key, value in override.items():
            yield from _key(run, f"sweep.overrides.{number}", key, value)
        if not override:
            remedy = "Name a key and its value, such as training.learning_rate: 1e-4."
            yield Problem(f"sweep.overrides.{number}", "{}", "changes nothing.", remedy)
    for key, values in sweep.grid.items():
        yield from _key(run, "sweep.grid", key, values)
        yield from _listed(f"sweep.grid.{key}", values)
    for key, drawn in sweep.ranges.items():
        yield from _key(run, "sweep.ranges", key, drawn)
        if isinstance(drawn, tuple):
            yield from _listed(f"sweep.ranges.{key}", drawn)


def _listed(field: str, values: tuple[Any, ...]) -> Iterator[Problem]:
    if not values:
        yield Problem(field, "[]", "has no value.", "List values, or leave the key out.")
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            yield Problem(field, text, "is listed twice.", "Remove one of them.")


def _key(run: "SweepRun", place: str, key: str, value: Any) -> Iterator[Problem]:
    """What is wrong with a key that trials set."""
    field, given = f"{place}.{key}", value if isinstance(value, str) else shown(value)
    found = field_of(key)
    if found is None:
        yield Problem(field, given, "is not a key of a run file.", _meant(key))
        return
    if section := section_of(found):
        remedy = f"Name its keys, with a dot: {key}.{next(iter(section.model_fields))}."
        yield Problem(field, given, "is a section, and trials set single values.", remedy)
        return
    for refused, why in REFUSED.items():
        if _is_in(key, refused):
            yield Problem(field, given, why, "Set it in the run, and not in its sweep.")
    for name, (keys, costs) in _ALLOWED.items():
        if any(_is_in(key, one) for one in keys) and name not in run.sweep.allow:
            message = f"each other value {costs}; a sweep does that only if it is told to."
            yield Problem(field, given, message, f"Add allow: [{name}] to sweep, or leave the key out.")


def _is_in(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _meant(key: str) -> str:
    keys = all_keys()
    close = [one for one in keys if one.rpartition(".")[2] == key] or difflib.get_close_matches(key, keys, n=1)
    if not close:  # a wrong section, with a key that is right
        close = [one for one in keys if one.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else "docs/configuration.md lists the keys."


def _size(run: "SweepRun") -> Iterator[Problem]:
    sweep, count = run.sweep, number_of_trials(run)
    way = "grid" if sweep.grid else "overrides"
    if count > MOST_TRIALS:
        field = "sweep.trials" if sweep.ranges else f"sweep.{way}"
        yield Problem(field, f"{count} trials", f"are more than {MOST_TRIALS}.", "Name fewer values.")
    elif not sweep.ranges and sweep.trials is not None and count > sweep.trials:
        message = f"are more than the {sweep.trials} of sweep.trials."
        yield Problem(f"sweep.{way}", f"{count} trials", message, "Name fewer values, or raise sweep.trials.")
    if sweep.budget is not None and sweep.budget.cost is None and sweep.budget.hours is None:
        yield Problem("sweep.budget", "{}", "limits nothing.", "Give cost, hours or both, or leave it out.")


def _ranges(run: "SweepRun") -> Iterator[Problem]:
    for key, drawn in run.sweep.ranges.items():
        found = field_of(key)
        if isinstance(drawn, tuple) or found is None or section_of(found):
            continue
        field, numbers = f"sweep.ranges.{key}", numbers_of(found)
        given = f"{drawn.low:g} to {drawn.high:g}"
        if numbers is None:
            yield Problem(field, given, "is no number in a run file.", f"List its values: {key}: [...].")
            continue
        if not drawn.low < drawn.high:
            yield Problem(field, given, "holds no range: low must be below high.", "Swap them, or list one value.")
        if drawn.log and drawn.low <= 0:
            yield Problem(field, given, "has no logarithm at its low end.", "Raise low above 0, or leave log out.")
        if drawn.log and drawn.step is not None:
            yield Problem(f"{field}.step", f"{drawn.step:g}", "does not go with log.", "Leave one of the two out.")
        parts = [part for part in (drawn.low, drawn.high, drawn.step) if part is not None]
        if numbers is int and not all(part.is_integer() for part in parts):
            yield Problem(field, given, "is for whole numbers.", "Write low, high and step as whole numbers.")
        elif drawn.step is not None and drawn.step > drawn.high - drawn.low:
            yield Problem(f"{field}.step", f"{drawn.step:g}", "is more than the range.", "Lower it, or leave it out.")
        if not all(math.isfinite(part) for part in parts):
            yield Problem(field, given, "is not finite.", "Write numbers.")


def _metric(run: "SweepRun") -> Iterator[Problem]:
    sweep, benchmarks = run.sweep, run.benchmarks
    if sweep.is_decided_by_loss:
        if benchmarks is not None:
            message = "are not measured by a sweep that held_out_loss decides."
            remedy = "Name one of their metrics in sweep.metric, or leave them out and measure the best afterwards."
            yield Problem("benchmarks", "given", message, remedy)
        return
    if benchmarks is None:
        message, remedy = "is a benchmark's, and the run has none.", "Add benchmarks, or use held_out_loss."
        yield Problem("sweep.metric", sweep.metric, message, remedy)
        return
    measured = {task.name: gate_rules.metrics_of_task(task) for task in benchmarks.tasks}
    yield from gate_rules.unknown_metric("sweep.metric", sweep.metric, measured)


def _run(run: "SweepRun") -> Iterator[Problem]:
    """What a run of its own may say, and one with a sweep may not."""
    if run.publish is not None:
        remedy = "Leave it out, and publish the best with a run of its own that has these values."
        yield Problem("publish", run.publish.repository, "is for one result, and a sweep has many.", remedy)
    if run.export is not None:
        remedy = "Leave it out, and export the best with workflows/export.py."
        formats = ", ".join(run.export.formats)
        yield Problem("export.formats", formats, "are for one result, and a sweep has many.", remedy)
    if (run.hardware.nodes or 1) > 1:
        message = "a trial of a sweep has one node, or a part of one."
        yield Problem("hardware.nodes", str(run.hardware.nodes), message, "Use nodes: 1, or leave it out.")
    if run.evaluation.saved_model:
        message = "is for one result, and a sweep has many."
        yield Problem("evaluation.saved_model", "true", message, "Leave it out, and measure the best afterwards.")
    if run.checkpoints.resume_from is not None:
        message = "is the checkpoint of one run, and each trial of a sweep has its own."
        yield Problem("checkpoints.resume_from", run.checkpoints.resume_from, message, "Leave it out.")
    if len(run.name) > LONGEST_SWEEP_NAME:
        message = f"is longer than {LONGEST_SWEEP_NAME}: each trial is called after it and its number."
        yield Problem("name", run.name, message, "Use a shorter one.")
    if any(source.source == TABLE for source in run.data.all_sources):
        remedy = "Write the rows as a file, and name that."
        yield Problem("data.source", TABLE, "is a table given to a workflow, and sweeps take none.", remedy)

"""The trials of a sweep: the run of each, made of the run file and of the values that the trial sets."""

import copy
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from thriftune.config.choices import METHODS
from thriftune.config.schema import RunConfig
from thriftune.errors import ConfigError, Problem

if TYPE_CHECKING:
    from thriftune.config.sweep import RangeConfig, SweepRun

# How a sweep names its trials: one of these keys.
WAYS = ("overrides", "grid", "ranges")
# A trial's run is named after the sweep and its number.
_LONGEST_NAME = 40
_NUMBER_DIGITS = 3
# More trials than that could not be told apart by name, and nobody looks at them.
MOST_TRIALS = 10**_NUMBER_DIGITS
# Of steps: 0.3 / 0.1 is less than 3.
_ROUNDED = 1e-9
LONGEST_SWEEP_NAME = _LONGEST_NAME - len("-t") - _NUMBER_DIGITS


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: Its number, from 0.
        settings: The values that it sets, by key of the run file.
        config: Its run.
    """

    number: int
    settings: Mapping[str, Any]
    config: RunConfig


def given_settings(run: "SweepRun") -> list[dict[str, Any]]:
    """What each trial of a list of overrides, or of a grid, sets; empty for trials that are drawn from ranges.

    Args:
        run: The sweep, with no more than `MOST_TRIALS` trials.
    """
    grid = run.sweep.grid
    if not grid:
        return [dict(override) for override in run.sweep.overrides]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def number_of_trials(run: "SweepRun") -> int:
    """How many trials a sweep has at most."""
    sweep = run.sweep
    if sweep.ranges:
        return int(min(sweep.trials or 0, math.prod(_differing(key, drawn) for key, drawn in sweep.ranges.items())))
    count = 1
    for values in sweep.grid.values():
        count *= len(values)
    return count if sweep.grid else len(sweep.overrides)


def _differing(key: str, drawn: "RangeConfig | tuple[Any, ...]") -> float:
    """How many values may be drawn for a key that differ; infinity where there is no end of them."""
    if isinstance(drawn, tuple):
        return len(drawn)
    field = field_of(key)
    step = drawn.step or (1.0 if field and numbers_of(field) is int else None)
    if step is None or not math.isfinite(drawn.high - drawn.low):
        return math.inf
    return max(1, math.floor((drawn.high - drawn.low) / step + _ROUNDED) + 1)


def trial_of(run: "SweepRun", number: int, settings: Mapping[str, Any]) -> Trial:
    """The run of one trial. Adapters are not merged: the best is, at the end.

    Args:
        run: The sweep.
        number: Number of the trial.
        settings: What it sets.

    Raises:
        ConfigError: The run with these values cannot be; each problem names the trial.
    """
    content: dict[str, Any] = run.model_dump(exclude={"sweep"}, exclude_unset=True)
    content["name"] = f"{run.name}-t{number}"
    for key, value in settings.items():
        _set(content, key.split("."), copy.deepcopy(value))
    method = METHODS.get(content.get("method", ""))
    if method and method.merges:
        _set(content, ["lora", "merge"], value=False)
    try:
        return Trial(number, settings, RunConfig.model_validate(content))
    except ConfigError as error:
        way = next(way for way in WAYS if getattr(run.sweep, way))
        raise ConfigError([_of_trial(way, number, settings, problem) for problem in error.problems]) from None


def written(settings: Mapping[str, Any]) -> str:
    """What a trial sets, as text."""
    return ", ".join(f"{key}: {shown(value)}" for key, value in settings.items())


def shown(value: Any) -> str:
    """A value of a run file as text, of drawn numbers with four digits."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def field_of(key: str) -> FieldInfo | None:
    """The field of a run file that a key such as lora.rank leads to; None if there is none.

    Args:
        key: The key.
    """
    section: type[BaseModel] | None = RunConfig
    field = None
    for name in key.split("."):
        field = section.model_fields.get(name) if section else None
        if field is None:
            return None
        section = section_of(field)
    return field


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section, optional or not; None for a value."""
    options = [field.annotation, *_options(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def numbers_of(field: FieldInfo) -> type[int] | type[float] | None:
    """Which numbers a field takes: whole ones, or all; None if it takes none."""
    kinds = {field.annotation, *_options(field.annotation)}
    return float if float in kinds else int if int in kinds else None


def all_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every key of a run file that has a value."""
    keys = []
    for name, field in section.model_fields.items():
        inner = section_of(field)
        keys += all_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows: `int | None`, or with constraints on one of them."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return ()
    return tuple(
        typing.get_args(option)[0] if typing.get_origin(option) is typing.Annotated else option
        for option in typing.get_args(annotation)
    )


def _set(content: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, name = path
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[name] = value


def _of_trial(way: str, number: int, settings: Mapping[str, Any], problem: Problem) -> Problem:
    """A problem of a trial's run, under the key that the sweep sets where that is the one."""
    key = next((key for key in settings if problem.field == key or problem.field.startswith(f"{key}.")), None)
    of_list = f"{number}." if way == "overrides" else ""
    field = f"sweep.{way}.{of_list}{key}" if key else problem.field
    return replace(problem, field=field, message=f"trial {number} ({written(settings)}): {problem.message}")

"""Print a page about keys or settings, from their class: docs/configuration.md, settings.md, and those of other files.

Usage: python scripts/config_docs.py > docs/configuration.md
       python scripts/config_docs.py settings > docs/settings.md
       python scripts/config_docs.py benchmarks > docs/benchmark-runs.md
       python scripts/config_docs.py sweeps > docs/sweep-runs.md
"""

import sys
import types
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.platform import Platform, variable
from thriftune.config import RunConfig
from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.config.sweep import RangeConfig, SweepConfig

_INTRODUCTION = """\
# The run file

A run is one YAML file; `configs/` holds complete ones to copy. Every key is below. A key that is not here is an error,
and so is a value of another type; all problems of a file are reported at once, before any GPU is asked for.

This page is made from `thriftune/config/schema.py` by `python scripts/config_docs.py > docs/configuration.md`.
"""
_SETTINGS = """\
# The settings of a platform

Environment variables of the command that runs or registers (`pyflyte run`, `register`, `package`), which passes them on
to pods. They describe a cluster, which a run file does not. None has to be set. A variable that begins with THRIFTUNE_
and is not listed here is an error, and so is an invalid value; all errors are reported at once.

This page is made from `tasks/platform.py` by `python scripts/config_docs.py settings > docs/settings.md`.

| Setting | Type | Default | Meaning |
|---|---|---|---|
"""
_MEASURING = """\
# The file of a run that only measures

`pyflyte run workflows/benchmark.py benchmark --config FILE` measures a model, or a base and adapters on it
([evaluation](evaluation.md#running-benchmarks)). All problems of a file are reported at once.

This page is made from `thriftune/config/benchmark_run.py` by
`python scripts/config_docs.py benchmarks > docs/benchmark-runs.md`.

"""
_SWEEPING = """\
# The file of a sweep

`pyflyte run workflows/sweep.py sweep --config FILE` trains a run with other values in each trial
([sweeps](sweeps.md)). Its file is a [run file](configuration.md) with a section `sweep` more. All problems of a file
are reported at once, those of its trials too.

This page is made from `thriftune/config/sweep.py` by `python scripts/config_docs.py sweeps > docs/sweep-runs.md`.

"""
_TABLE_HEAD = "| Key | Type | Default | Meaning |\n|---|---|---|---|"
_PLAIN_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "none",
    Any: "any",
}
# Names of pydantic's constraints in annotated_types, and the signs that people write.
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def document(root: type[BaseModel]) -> str:
    """Write the page about run files.

    Args:
        root: Class of a run file.

    Returns:
        Markdown: one table for the top level, and one for each section.
    """
    return "\n".join([_INTRODUCTION, _table("Top level", root), *_tables_below("", root)])


def document_measuring(root: type[BaseModel]) -> str:
    """Write the page about the files of runs that only measure.

    Args:
        root: Class of such a file.

    Returns:
        Markdown: one table; its sections are those of a run file.
    """
    table = _table("Keys", root).replace("[gate](#gate)", "[publish.gate](#publishgate)")
    return _MEASURING + table.replace("](#", "](configuration.md#")


def document_sweeping(section: type[BaseModel], of_range: type[BaseModel]) -> str:
    """Write the page about the files of sweeps.

    Args:
        section: Class of the section `sweep`.
        of_range: Class of a range of numbers in it.

    Returns:
        Markdown: one table for the section, and one for each section in it.
    """
    below = _tables_below("sweep.", section)
    return _SWEEPING + "\n".join([_table("`sweep`", section, "sweep."), _table("Each range", of_range), *below])


def document_settings(platform: type[BaseModel]) -> str:
    """Write the page about settings.

    Args:
        platform: Class that reads the settings.

    Returns:
        Markdown: one table.
    """
    return _SETTINGS + "".join(_row(variable(name), info) + "\n" for name, info in platform.model_fields.items())


def _tables_below(path: str, section: type[BaseModel]) -> list[str]:
    """The tables of all sections and lists of sections below a section.

    Args:
        path: The keys that lead to the section, each with a dot after it; empty for the top level.
        section: Its class.
    """
    tables = []
    for key, info in section.model_fields.items():
        if inner := _section(info):
            tables += [_table(f"`{path}{key}`", inner, f"{path}{key}."), *_tables_below(f"{path}{key}.", inner)]
        elif entry := _entry(info):
            tables.append(_table_of_entries(path, key, section, entry))
    return tables


def _table_of_entries(path: str, key: str, section: type[BaseModel], entry: type[BaseModel]) -> str:
    """The table of a list of sections, with the keys that its entries have in addition to those of its own section."""
    own = {k: i for k, i in entry.model_fields.items() if k not in section.model_fields}
    inherited = f" Its keys are those of `{path.rstrip('.')}` that describe a source, and:"
    text = " ".join((entry.__doc__ or "").split()) + (inherited if len(own) < len(entry.model_fields) else "")
    lines = [_row(k, i) for k, i in own.items()]
    return "\n".join([f"## `{path}{key}`, each entry", "", text, "", _TABLE_HEAD, *lines]) + "\n"


def _table(title: str, section: type[BaseModel], path: str = "") -> str:
    lines = [f"## {title}", "", " ".join((section.__doc__ or "").split()), "", _TABLE_HEAD]
    lines += [_row(name, info, path) for name, info in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, info: FieldInfo, path: str = "") -> str:
    section = _section(info)
    meaning = info.description or (section.__doc__ if section else None)
    if not meaning:
        raise ValueError(f"The key {name} has no description in thriftune/config/schema.py: describe it there.")
    anchor = f"{path}{name}".replace(".", "")  # as GitHub makes it of a heading
    type_name = f"section, see [{path}{name}](#{anchor})" if section else _type_name(info.annotation) + _limits(info)
    cells = [f"`{name}`", type_name, _default(info, section), " ".join(meaning.split())]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a key that is a section, optional or not; None for a plain value."""
    is_list = typing.get_origin(info.annotation) is tuple
    options = (info.annotation, *(() if is_list else typing.get_args(info.annotation)))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _entry(info: FieldInfo) -> type[BaseModel] | None:
    """The class of the entries of a key that is a list of sections; None for any other."""
    options = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is tuple else ()
    options = tuple(inner for option in options for inner in (option, *typing.get_args(option)))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _type_name(annotation: Any) -> str:
    if annotation in _PLAIN_NAMES:
        return _PLAIN_NAMES[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(option) for option in arguments if option is not type(None))
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return "list of sections" if _is_section(arguments[0]) else f"list of {_type_name(arguments[0])}"
    if _is_section(annotation) or origin is dict:
        return "section" if _is_section(annotation) else "mapping"
    raise ValueError(f"No plain name for the type {annotation}: add it to scripts/config_docs.py.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _limits(info: FieldInfo) -> str:
    """Bounds and patterns of a value, which pydantic keeps on the field or inside a union."""
    found = list(info.metadata)
    for option in typing.get_args(info.annotation):
        found += typing.get_args(option)[1:] if typing.get_origin(option) is typing.Annotated else []
    limits = [
        f"{sign} {value}"
        for m in found
        for word, sign in _LIMITS.items()
        if (value := getattr(m, word, None)) is not None
    ]
    limits += [f"matches `{m.pattern}`" for m in found if getattr(m, "pattern", None)]
    return f", {', '.join(limits)}" if limits else ""


def _default(info: FieldInfo, section: type[BaseModel] | None) -> str:
    if info.is_required():
        return "required"
    if section and info.default is not None:
        return "its defaults"
    if info.default in (None, ""):
        return "none"
    if info.default in ((), {}):
        return "empty"
    return f"`{str(info.default).lower()}`" if isinstance(info.default, bool) else f"`{info.default}`"


if __name__ == "__main__":
    made = {
        "settings": lambda: document_settings(Platform),
        "benchmarks": lambda: document_measuring(BenchmarkRun),
        "sweeps": lambda: document_sweeping(SweepConfig, RangeConfig),
    }
    sys.stdout.write(made.get("".join(sys.argv[1:]), lambda: document(RunConfig))())

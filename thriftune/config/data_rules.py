"""Rules over several fields of the data section; those of the other sections are in `thriftune.config.rules`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config.formats import COLUMNS, OPTIONAL_COLUMNS, is_hub_source, template_fields
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import DataConfig, DataSource, RunConfig


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the data section that the file alone shows."""
    data = config.data
    if data.sources:
        yield from _single_or_several(config)
        weighted = [source.weight is not None for source in data.sources]
        if any(weighted) and not all(weighted):
            without = weighted.index(False)
            yield Problem(
                f"data.sources.{without}.weight",
                "",
                "is missing, while other sources have a weight.",
                "Give every source a weight, or none.",
            )
    for field, source in zip(data.source_fields, data.all_sources, strict=True):
        yield from _source(source, field)
    yield from _replay(data)
    if data.packing and config.training.group_by_length:
        yield Problem(
            "training.group_by_length",
            "true",
            "has no effect on packed rows, which all have the same length.",
            "Use data.packing or training.group_by_length, not both.",
        )


def _single_or_several(config: "RunConfig") -> Iterator[Problem]:
    from thriftune.config.schema import DataSource

    # Not the fields that were set: a run that went through JSON, as between tasks, has every key set.
    both = [
        name
        for name, field in DataSource.model_fields.items()
        if getattr(config.data, name) != field.get_default(call_default_factory=True)
    ]
    for name in both:
        yield Problem(
            f"data.{name}",
            str(getattr(config.data, name)),
            "is given next to data.sources, and describes none of them.",
            "Put it into the entries of data.sources, or remove data.sources.",
        )


def _replay(data: "DataConfig") -> Iterator[Problem]:
    """Rows that are replayed, and those of the task, from one place: they would train twice, or be held out too."""
    if data.replay is None or not data.replay.source:
        return
    place = ("source", "subset", "split", "revision")
    for field, source in zip(data.source_fields, data.task_sources, strict=False):
        if all(getattr(source, key) == getattr(data.replay, key) for key in place):
            message = f"is also {field}.source, so its rows would be those of the task."
            remedy = "Give general rows that are not of the task, or remove data.replay."
            yield Problem("data.replay.source", data.replay.source, message, remedy)
            return


def _source(source: "DataSource", field: str) -> Iterator[Problem]:
    for name in ("source", "format"):
        if not getattr(source, name):
            description = " ".join((type(source).model_fields[name].description or "").split())
            yield Problem(f"{field}.{name}", "", "is missing.", f"Add it: {description}")
    yield from _unused(source, field)
    yield from _template(source, field)
    if source.format and source.format != "template":
        yield from _columns(source, field)


def _columns(source: "DataSource", field: str) -> Iterator[Problem]:
    known = (*COLUMNS[str(source.format)], *OPTIONAL_COLUMNS.get(str(source.format), ()))
    targets = list(source.columns.values())
    for column, target in source.columns.items():
        if column not in known:
            yield Problem(
                f"{field}.columns.{column}",
                target,
                f"is not a column of format {source.format}.",
                f"Its columns are {', '.join(known)}; write {{column of the format: column of the data}}.",
            )
        elif not target or targets.count(target) > 1 or (target in known and target not in source.columns):
            remedy = "Name another column of the data."
            yield Problem(f"{field}.columns.{column}", target, "names no column, or one that is read twice.", remedy)


def _unused(source: "DataSource", field: str) -> Iterator[Problem]:
    """Keys that only apply to another kind of source."""
    from thriftune.config.schema import DataSource

    if not source.source:
        return
    for name in () if is_hub_source(source.source) else ("subset", "split", "revision"):
        if getattr(source, name) != DataSource.model_fields[name].default:
            yield Problem(
                f"{field}.{name}",
                str(getattr(source, name)),
                f"is for hub datasets, and {source.source} is not one.",
                "Remove it, or give the id of a hub dataset.",
            )
    if source.sample_by != DataSource.model_fields["sample_by"].default and ".txt" not in source.source.lower():
        yield Problem(
            f"{field}.sample_by", source.sample_by, f"is for .txt files, and {source.source} is not one.", "Remove it."
        )


def _template(source: "DataSource", field: str) -> Iterator[Problem]:
    if source.format is None:
        return
    if source.format != "template":
        for name in ("template", "trained_fields"):
            if getattr(source, name):
                yield Problem(
                    f"{field}.{name}",
                    str(getattr(source, name)),
                    f"belongs to format template, but the format is {source.format}.",
                    "Remove it, or set format: template.",
                )
        return
    if source.template is None:
        yield Problem(
            f"{field}.template", "", "is missing.", "Add it, for example 'Question: {question}\\nAnswer: {answer}'."
        )
        return
    try:
        fields = template_fields(source.template)
    except ValueError as error:
        remedy = "Write columns as {name}, and a literal brace as {{ or }}."
        yield Problem(f"{field}.template", source.template, f"{error}.", remedy)
        return
    for name in source.trained_fields:
        if name not in fields:
            yield Problem(
                f"{field}.trained_fields", name, "is not in the template.", f"Its fields are {', '.join(fields)}."
            )
    for name in source.columns:
        if name not in fields:
            yield Problem(
                f"{field}.columns.{name}",
                source.columns[name],
                "is not a field of the template.",
                f"Its fields are {', '.join(fields)}.",
            )

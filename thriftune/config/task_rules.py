"""Rules over several fields about the task: what the model learns."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from thriftune.config.choices import METHODS
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

CLASSIFICATION = "classification"
_LABELLED = "labelled"


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the task that the file alone shows."""
    is_classifier = config.task == CLASSIFICATION
    labelled = [source.format == _LABELLED for source in config.data.task_sources]
    yield from _replay(config)
    if is_classifier != (config.classification is not None):
        yield _section(is_missing=is_classifier)
    if config.classification is not None:
        yield from _labels(config.classification.labels)
    if is_classifier:
        yield from _rows(config)
    if is_classifier and config.evaluation.watch_general:
        message = "measures answers that are written, and a classifier writes none."
        yield Problem("evaluation.watch_general", "true", message, "Remove it.")
    if is_classifier and not METHODS[config.method].classifies:
        able = ", ".join(name for name, facts in METHODS.items() if facts.classifies)
        message = f"cannot train a classifier; {able} can."
        yield Problem("method", config.method, message, "Use one of them, or leave task out.")
    if is_classifier and not all(labelled):
        yield Problem("data.format", str(config.data.prompt_format), "has no labels.", f"Use format: {_LABELLED}.")
    if not is_classifier and any(labelled):
        message = "has labels, which task causal_lm does not use."
        yield Problem("data.format", _LABELLED, message, f"Set task: {CLASSIFICATION}, or use another format.")


def _replay(config: "RunConfig") -> Iterator[Problem]:
    """Replayed rows in a run, or in a format, that learns classes."""
    replay = config.data.replay
    if replay is None:
        return
    if config.task == CLASSIFICATION:
        message = "is text to continue, and a classifier learns no token."
        yield Problem("data.replay", replay.source, message, "Remove it.")
    elif replay.format == _LABELLED:
        message = "has labels, which task causal_lm does not use."
        yield Problem("data.replay.format", _LABELLED, message, "Use another format.")


def _labels(labels: Sequence[str]) -> Iterator[Problem]:
    """Names that cannot be told apart, or that no row can have: white space around a label is not read."""
    field, named = "classification.labels", [label.strip() for label in labels]
    if not all(named):
        yield Problem(field, ", ".join(labels), "has a name that is empty.", "Name every class.")
    twice = sorted({name for name in named if name and named.count(name) > 1})
    if twice:
        yield Problem(field, ", ".join(twice), "is named twice.", "Name every class once.")


def _rows(config: "RunConfig") -> Iterator[Problem]:
    """Settings of the data that have no meaning for rows with one label each."""
    data = config.data
    if data.packing:
        message = "would put several texts into a row, and a classifier reads one class from each."
        remedy = "Leave it out; training.group_by_length: true saves padding."
        yield Problem("data.packing", "true", message, remedy)
    if data.long_rows == "split":
        message = "would give every piece of a text the label of the whole."
        yield Problem("data.long_rows", "split", message, "Use truncate or drop.")
    if data.train_on_inputs:
        message = "belongs to task causal_lm: of a labelled row the class is learnt, and no token."
        yield Problem("data.train_on_inputs", "true", message, "Remove it.")


def _section(*, is_missing: bool) -> Problem:
    if is_missing:
        message, remedy = "is missing.", "Add the names of the classes: classification: {labels: [negative, positive]}."
        return Problem("classification.labels", "", message, remedy)
    message = "belongs to task classification."
    return Problem("classification", "given", message, f"Remove it, or set task: {CLASSIFICATION}.")

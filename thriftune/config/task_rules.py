"""Rules over several fields about the task: what the model learns."""

from collections.abc import Iterator
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
    labelled = [source.format == _LABELLED for source in config.data.all_sources]
    if is_classifier != (config.classification is not None):
        yield _section(is_missing=is_classifier)
    if is_classifier and not METHODS[config.method].classifies:
        able = ", ".join(name for name, facts in METHODS.items() if facts.classifies)
        message = f"cannot train a classifier; {able} can."
        yield Problem("method", config.method, message, "Use one of them, or leave task out.")
    if is_classifier and not all(labelled):
        yield Problem("data.format", str(config.data.prompt_format), "has no labels.", f"Use format: {_LABELLED}.")
    if not is_classifier and any(labelled):
        message = "has labels, which task causal_lm does not use."
        yield Problem("data.format", _LABELLED, message, f"Set task: {CLASSIFICATION}, or use another format.")


def _section(*, is_missing: bool) -> Problem:
    if is_missing:
        message, remedy = "is missing.", "Add the names of the classes: classification: {labels: [negative, positive]}."
        return Problem("classification.labels", "", message, remedy)
    message = "belongs to task classification."
    return Problem("classification", "given", message, f"Remove it, or set task: {CLASSIFICATION}.")

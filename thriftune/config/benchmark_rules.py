"""Rules over several fields about benchmarks and the gate."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config import gate_rules
from thriftune.config.benchmarks import GENERAL_MINI, HELD_OUT, BenchmarkTask
from thriftune.config.publishing import ANSWERS
from thriftune.errors import Problem
from thriftune.urls import path_of

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

_LINES, _TASKS = (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".yaml", ".yml")


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of benchmarks and gate that the file alone shows."""
    yield from _benchmarks(config)
    yield from gate_rules.check(config)


def _benchmarks(config: "RunConfig") -> Iterator[Problem]:
    if config.benchmarks is None:
        return
    if config.labels:
        message = "ask a language model, and a classifier answers no questions."
        yield Problem("benchmarks", "given", message, "Remove it: evaluation measures the classes of held-out rows.")
    names = [task.name for task in config.benchmarks.tasks]
    for number, task in enumerate(config.benchmarks.tasks):
        field = f"benchmarks.tasks.{number}"
        if task.name in names[:number]:
            remedy = "Remove it, or give a file of your own another name."
            yield Problem(f"{field}.name", task.name, "is there twice: results are known by it.", remedy)
        yield from _task(task, field)


def _task(task: BenchmarkTask, field: str) -> Iterator[Problem]:
    own = {GENERAL_MINI, HELD_OUT} if task.file is not None else set()
    if task.name in own | {ANSWERS}:
        message = "means something else already, so results would be confused."
        yield Problem(f"{field}.name", task.name, message, "Use another name.")
    if task.name == HELD_OUT and task.few_shot:
        message = "cannot go before held-out rows: they are measured as they are trained on."
        yield Problem(f"{field}.few_shot", str(task.few_shot), message, "Leave it out.")
    path = "" if task.file is None else path_of(task.file).lower()
    if task.file is None and task.format is not None:
        message = "says what the lines of a file are, and there is no file."
        yield Problem(f"{field}.format", task.format, message, "Add `file`, or leave format out.")
    elif path.endswith(_LINES) and task.format is None:
        remedy = "Add format: multiple_choice or format: exact_answer."
        yield Problem(f"{field}.file", str(task.file), "does not say what its lines are.", remedy)
    elif path.endswith(_TASKS) and task.format is not None:
        message = "is for .jsonl files; a .yaml file says itself what its items are."
        yield Problem(f"{field}.format", task.format, message, "Leave it out.")
    elif path and not path.endswith((*_LINES, *_TASKS)):
        message = "is neither a .jsonl file nor a .yaml file."
        yield Problem(f"{field}.file", str(task.file), message, "Write items as JSON Lines, or a task as YAML.")

"""Rules over several fields about the gate: what it asks for is measured, and can be met."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from thriftune.config.benchmarks import GENERAL_MINI, HELD_OUT, BenchmarkTask
from thriftune.config.publishing import ANSWERS, BEHAVIOURS, LENGTH, GateConfig
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

# The metrics of our own formats. Those of lm-evaluation-harness are in its tasks, which a run file does not have.
METRICS: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("accuracy", "accuracy_sum"),
    "exact_answer": ("exact_match",),
    HELD_OUT: ("loss",),
}
# Metrics that lie between 0 and 1, here and in lm-evaluation-harness.
SHARES = {"accuracy", "accuracy_sum", "exact_match", "acc", "acc_norm", *(set(BEHAVIOURS) - {LENGTH})}
STOPS = "stops"


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the gate that the file alone shows.

    Args:
        config: A run whose single fields are valid.
    """
    gate = config.publish.gate if config.publish else None
    if gate is None:
        return
    yield from _rules(gate)
    yield from _thresholds(gate)
    if config.benchmarks is None:
        remedy = "Add the section benchmarks, for example benchmarks: {tasks: [general-mini, held_out]}."
        yield Problem("publish.gate", "given", "decides by benchmarks, but the run has none.", remedy)
    else:
        yield from unknown_metrics(gate, _measured(config.benchmarks.tasks))


def unknown_metrics(gate: GateConfig, measured: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """The metrics of a gate that are not measured, each with names close to it.

    Args:
        gate: The gate.
        measured: By benchmark (`general-mini`) or group of one (`general-mini/arithmetic`), the names of its metrics;
            none where they are not known, so that every name may be one. Where no group of a benchmark is listed, its
            groups are not known either.
    """
    for field, metric in metrics_of(gate):
        yield from unknown_metric(field, metric, measured)


def unknown_metric(field: str, metric: str, measured: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Whether a metric is not measured, with names close to it.

    Args:
        field: The key that names it.
        metric: The metric, as task.metric.
        measured: As in `unknown_metrics`.
    """
    of, _, name = metric.rpartition(".")
    task = of.partition("/")[0]
    has_groups = any(known.startswith(f"{task}/") for known in measured)
    names = measured.get(of if has_groups else task)
    if names is None:
        close = difflib.get_close_matches(of, measured, n=3, cutoff=0.5)
        message = f"is of {of}, which is not measured." if of else "names no benchmark: write task.metric."
        remedy = f"Did you mean {_listed(close)}?" if close else f"Measured are {_listed(measured)}."
        yield Problem(field, metric, message, remedy)
    elif names and name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        remedy = f"Did you mean {_listed(close)}?" if close else f"Its metrics are {_listed(names)}."
        yield Problem(field, metric, f"is no metric of {of}.", remedy)


def of_answers(*, writes: bool, held_out: bool) -> tuple[str, ...]:
    """What is known of how a model answers. The answers to a run's prompts are always looked at, as texts.

    Args:
        writes: Whether a benchmark asks for written answers: how they end and how long they are is known.
        held_out: Whether held-out rows are measured: the first are answered, and the same is known of these answers.
    """
    known = dict.fromkeys((STOPS, LENGTH), writes or held_out)
    return tuple(name for name in BEHAVIOURS if known.get(name, True))


def metrics_of(gate: GateConfig) -> Iterator[tuple[str, str]]:
    """The metrics of a gate, each with the key that names it.

    Args:
        gate: The gate.
    """
    for number, improved in enumerate(gate.improves):
        yield f"publish.gate.improves.{number}.metric", improved.metric
    for number, kept in enumerate(gate.keeps):
        yield f"publish.gate.keeps.{number}.metric", kept.metric


def _rules(gate: GateConfig) -> Iterator[Problem]:
    """A gate that asks for nothing, or for the same twice."""
    if not gate.improves and not gate.keeps:
        remedy = "Name a metric in improves or keeps, or remove the gate."
        yield Problem("publish.gate", "given", "asks for nothing, so that everything would pass.", remedy)
    seen: dict[str, str] = {}
    for field, metric in metrics_of(gate):
        if metric in seen:
            yield Problem(field, metric, f"is named in {seen[metric]} already.", "Remove one of them.")
        seen.setdefault(metric, field)
    for number, improved in enumerate(gate.improves):
        if improved.metric == f"{ANSWERS}.{LENGTH}":
            message, remedy = "is neither better nor worse when it rises.", "Name it in keeps, with the change allowed."
            yield Problem(f"publish.gate.improves.{number}.metric", improved.metric, message, remedy)


def _thresholds(gate: GateConfig) -> Iterator[Problem]:
    """Thresholds of the wrong sign or unit."""
    by = [(f"improves.{n}.by", rule.metric, rule.by) for n, rule in enumerate(gate.improves)]
    within = [(f"keeps.{n}.within", rule.metric, rule.within) for n, rule in enumerate(gate.keeps)]
    for key, metric, value in (*by, *within):
        field = f"publish.gate.{key}"
        if value < 0:
            message = "has the wrong sign: it is how much, and a loss that falls by 0.02 gets better by 0.02."
            yield Problem(field, str(value), message, f"Write {-value:g}.")
        elif metric.rpartition(".")[2] in SHARES and (value > 1 or (value == 1 and key.startswith("keeps"))):
            never = "can never be reached" if key.startswith("improves") else "accepts any loss"
            message = f"{never}: {metric} is a share, from 0 to 1."
            yield Problem(field, f"{value:g}", message, f"For {value:g} points of a hundred, write {value / 100:g}.")


def _measured(tasks: Collection[BenchmarkTask]) -> dict[str, tuple[str, ...]]:
    """What the run's benchmarks measure; none for a benchmark of which the file does not say it."""
    measured = {task.name: metrics_of_task(task) for task in tasks}
    writes = any(names not in (METRICS["multiple_choice"], METRICS[HELD_OUT]) for names in measured.values())
    return measured | {ANSWERS: of_answers(writes=writes, held_out=HELD_OUT in measured)}


def metrics_of_task(task: BenchmarkTask) -> tuple[str, ...]:
    """The metrics of a benchmark; none where the run's file does not say them."""
    if task.format is not None:
        return METRICS[task.format]
    if task.file is not None:
        return ()
    return METRICS["multiple_choice"] if task.name == GENERAL_MINI else METRICS.get(task.name, ())


def _listed(names: Collection[str], most: int = 12) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")

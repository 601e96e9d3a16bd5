"""Put together what came of the trials of a sweep: round by round, their scores, and all of it at the end."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pages, settings, trial_results
from tasks.compare_benchmarks import download_all, joined_of
from tasks.declaring import cpu_task
from thriftune.config import gate_rules
from thriftune.config.sweep import SweepRun
from thriftune.errors import ConfigError, ResultError
from thriftune.inference.benchmarks.results import Results
from thriftune.inference.benchmarks.scores import scores_of
from thriftune.sweeps import report
from thriftune.sweeps.choosing import losses_of
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import TrialKey
from thriftune.sweeps.rounds import PlannedRound, SoFar, Tried
from thriftune.sweeps.table import SweepTable, headline, table_of, text_of

logger = logging.getLogger("thriftune.tasks.summarize_sweep")

_LOST = "its pod was lost, and nothing is known of it; start the sweep again to train it"


@task(**cpu_task())
def join_round(
    config: SweepRun,
    planned: PlannedRound,
    before: SoFar,
    served: list[Outcome],
    keys: list[TrialKey],
    packed: list[list[list[Outcome] | None]],
    alone: list[list[Outcome | None]],
) -> SoFar:
    """Put together what came of the trials of a round.

    Args:
        config: The sweep.
        planned: The round.
        before: What came of the rounds before.
        served: Trials that an earlier run had trained.
        keys: Where what the others make is found. Of several with one key, one was trained.
        packed: What came of the packs; None of one whose pod was lost.
        alone: What came of trials with a node each; None of one whose pod was lost.

    Returns:
        What came of the sweep so far. By held-out loss, trials are judged at once.
    """
    packs = [outcomes for group in packed for outcomes in group if outcomes]
    singles = [[outcome] for group in alone for outcome in group if outcome]
    known = {outcome.number: outcome for outcomes in (served, *packs, *singles) for outcome in outcomes}
    known |= {one.number: one for one in _of_others(config, keys, known)}
    tried = []
    for trial in planned.trials:
        outcome = known.get(trial.number, Outcome(trial.number, "unknown", error=_LOST))
        tried.append(Tried(trial, outcome))
        _log(outcome)
    found = before.with_round(planned, tried)
    if config.sweep.is_decided_by_loss:
        found = found.judged(losses_of(found.outcomes), is_higher_better=False)
    return found


def _of_others(config: SweepRun, keys: Sequence[TrialKey], known: Mapping[int, Outcome]) -> Iterator[Outcome]:
    """What came of trials that no pod told of: what a lost pod had made, and equals of another trial of the round."""
    made = {key.cache_key: known[key.number] for key in keys if key.number in known}
    for key in keys:
        if key.number in known:
            continue
        outcome, halving = made.get(key.cache_key), config.sweep.halving_json
        if outcome is not None:
            logger.info("Trial %d trains the same as trial %d, and was not trained again", key.number, outcome.number)
            yield replace(outcome, number=key.number, is_served=True)
        elif (found := trial_results.found(key.number, key.cache_key, key.record, halving)) is not None:
            yield found


@task(**cpu_task())
def score_round(
    config: SweepRun,
    found: SoFar,
    made: list[list[FlyteDirectory]],
    served: list[list[FlyteDirectory]],
    folders: list[dict[str, list[int]]],
) -> SoFar:
    """Judge the trials of a round by a metric of the benchmarks.

    Args:
        config: The sweep.
        found: What came of the sweep so far.
        made: Results of shards, for each group of trials that was measured together.
        served: Those that the index had.
        folders: For each group, by the name of the folder in each shard: the numbers of the trials.

    Returns:
        What came of the sweep so far, with the scores.

    Raises:
        ConfigError: The benchmarks have no such metric.
    """
    scores: dict[int, float] = {}
    is_higher_better = found.is_higher_better
    for own, known, names in zip(made, served, folders, strict=True):
        shards = download_all([*own, *known])
        for folder, numbers in names.items():
            results = joined_of(shards, folder)
            scores |= dict.fromkeys(numbers, _score(config, results))
            is_higher_better = _is_higher_better(config, results)
    return found.judged(scores, is_higher_better=is_higher_better)


class Summary(NamedTuple):
    """The model or adapter of the best trial, and the table of all of them."""

    best: FlyteDirectory
    table: SweepTable


@task(**cpu_task(), enable_deck=True, deck_fields=())
def summarize_sweep(config: SweepRun, found: SoFar) -> Summary:
    """Choose the best trial, and show what came of all of them.

    Args:
        config: The sweep.
        found: What came of it.

    Returns:
        The best trial's model or adapter, and the table.

    Raises:
        ResultError: No trial can be the best.
    """
    table = table_of(config, found)
    logger.info("\n%s", text_of(table))
    pages.show("sweep", config.name, report.page_of(table, found), table.as_json())
    if table.best is None:
        raise _nothing_trained(config, table)
    if table.ended:
        logger.warning("%s", headline(table))
    model = next(row.model for row in table.rows if row.number == table.best)
    place = FlyteDirectory(model, remote_directory=False) if settings.is_local() else FlyteDirectory(model)
    return Summary(place, table)


def _nothing_trained(config: SweepRun, table: SweepTable) -> ResultError:
    because = {"stopped": "sweep.halving stopped it", "trained": f"its {table.metric} is not a number"}
    whys = {row.number: row.error or because.get(row.status, "") for row in table.rows}
    errors = [f"trial {row.number} ({row.status}): {whys[row.number].removesuffix('.')}." for row in table.rows]
    remedy = "Repair what the trials say, and start the sweep again: what is trained is not trained again."
    return ResultError.single("sweep", config.name, f"no trial can be the best. {' '.join(errors[:3])}", remedy)


def _score(config: SweepRun, results: Results) -> float:
    scores, metric = scores_of(results), config.sweep.metric
    if metric not in scores:
        measured: Mapping[str, Sequence[str]] = {task.name: list(task.metrics) for task in results.tasks}
        problems = list(gate_rules.unknown_metric("sweep.metric", metric, measured))
        if problems:
            raise ConfigError(problems)
        message = f"is not measured. Measured are {', '.join(scores)}."
        remedy = "Name one of them, and start the sweep again: what is trained is not trained again."
        raise ConfigError.single("sweep.metric", metric, message, remedy)
    return scores[metric]


def _is_higher_better(config: SweepRun, results: Results) -> bool:
    of, _, name = config.sweep.metric.rpartition(".")
    return next(task.metrics[name] for task in results.tasks if task.name == of.partition("/")[0])


def _log(outcome: Outcome) -> None:
    if outcome.status in ("failed", "unknown"):
        logger.warning("Trial %d %s: %s", outcome.number, outcome.status, outcome.error)

"""Join what the shards of benchmarks measured, compare models on the same items, and decide."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pages, settings
from tasks.declaring import cpu_task
from tasks.transfer import download, upload
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.config.benchmark_run import BASE, BenchmarkRun
from thriftune.config.publishing import GateConfig
from thriftune.inference.benchmarks.results import Results
from thriftune.inference.benchmarks.scores import BenchmarkScores, page_of_scores, scores_of
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.report import page_of_benchmarks
from thriftune.inference.gate.verdict import Verdict, decide
from thriftune.training.held_out import EvalReport
from thriftune.training.result import Asked, TrainingResult

logger = logging.getLogger("thriftune.tasks.compare_benchmarks")

_TUNED = "tuned"


class ComparedBenchmarks(NamedTuple):
    """Base and tuned on the same items, what the gate decides (None without one), and the results item by item."""

    comparison: Comparison
    verdict: Verdict | None
    items: FlyteDirectory


@task(**cpu_task(), enable_deck=True, deck_fields=())
def compare_benchmarks(
    config: RunConfig,
    repeats: int,
    base: list[FlyteDirectory],
    tuned: list[FlyteDirectory],
    adapter: str,
    training: TrainingResult,
) -> ComparedBenchmarks:
    """Compare a run's result with its base, and decide whether it may be published.

    Args:
        config: The run.
        repeats: How often the base was measured.
        base: Results of its shards: those of the first time, then those of the next.
        tuned: Results of the shards of the result.
        adapter: What the adapter is known by whose results these are; empty for a model.
        training: What was measured while it trained, with answers before and after.

    Returns:
        The comparison, the verdict, and all results as Parquet.
    """
    measured = joined(base, BASE, repeats)
    result = joined(tuned, adapter or BASE)[0]
    gate = config.publish.gate if config.publish else None
    confidence = gate.confidence if gate else GateConfig().confidence
    comparison = compare(measured, result, confidence, config.seed, _samples(config, training))
    verdict = decide(comparison, gate) if gate else None
    named = {BASE if not number else f"{BASE}-{number + 1}": one for number, one in enumerate(measured)}
    items = write_items(config.name, {**named, _TUNED: result})
    page = page_of_benchmarks(config.name, {_TUNED: comparison}, {_TUNED: verdict} if verdict else None)
    pages.show("benchmarks", config.name, page, json.dumps(comparison.as_json(), indent=2) + "\n")
    return ComparedBenchmarks(comparison, verdict, items)


class BenchmarkResult(NamedTuple):
    """The results item by item as Parquet, a folder for each model, and the scores of all of them."""

    items: FlyteDirectory
    scores: BenchmarkScores


@task(**cpu_task(), enable_deck=True, deck_fields=())
def summarize_benchmarks(
    config: BenchmarkRun,
    repeats: int,
    base: list[FlyteDirectory],
    tuned: list[FlyteDirectory],
    served: list[FlyteDirectory],
    adapters: dict[str, str],
) -> BenchmarkResult:
    """Put together what a run measured that does not train, compare each adapter with the model, and show all of it.

    Args:
        config: The run.
        repeats: How often the model itself was measured.
        base: Results of its shards: those of the first time, then those of the next.
        tuned: Results of the shards of the adapters.
        served: Those that the index had.
        adapters: What each adapter is known by, by its name.

    Returns:
        All results as Parquet, and the scores.
    """
    measured = joined(base, BASE, repeats)
    shards = download_all([*tuned, *served])
    found = {name: joined_of(shards, key) for name, key in adapters.items()}
    confidence = config.gate.confidence if config.gate else GateConfig().confidence
    comparisons = {name: compare(measured, one, confidence, config.seed) for name, one in found.items()}
    verdicts = {name: decide(one, config.gate) for name, one in comparisons.items()} if config.gate else {}
    for name, verdict in verdicts.items():
        logger.info("%s: %s", name, verdict.sentence)
    results = {BASE: measured[0], **found}
    scores = BenchmarkScores(
        config.name, {name: scores_of(one) for name, one in results.items()}, comparisons, verdicts
    )
    items = write_items(config.name, results)
    _show(config.name, results, scores)  # into the folder of the items, which is there now
    return BenchmarkResult(items, scores)


def _show(run_name: str, results: Mapping[str, Results], scores: BenchmarkScores) -> None:
    """Log the scores, and show them on a page."""
    lines = [f"{model}  {metric}  {score:.4f}" for model, own in scores.scores.items() for metric, score in own.items()]
    logger.info("\n%s", "\n".join(lines))
    if scores.comparisons:
        page = page_of_benchmarks(run_name, scores.comparisons, scores.verdicts)
    else:
        page = page_of_scores(run_name, results[BASE])
    pages.show("benchmarks", run_name, page, scores.as_json() + "\n")


def joined(shards: Sequence[FlyteDirectory], name: str, times: int = 1) -> list[Results]:
    """The results of a model, once for each time that it was measured.

    Args:
        shards: Results of its shards: those of the first time, then those of the next.
        name: The folder in each that has them.
        times: How often it was measured.
    """
    found, count = download_all(shards), len(shards) // times
    return [joined_of(found[first * count : (first + 1) * count], name) for first in range(times)]


def download_all(shards: Sequence[FlyteDirectory]) -> list[Path]:
    """Bring the results of shards to this disk.

    Args:
        shards: The results.
    """
    return [download(shard) for shard in shards]


def joined_of(shards: Sequence[Path], name: str) -> Results:
    """The results of one model.

    Args:
        shards: Results of shards; one that measured other adapters only has no folder of that name.
        name: The folder in each that has them.
    """
    return Results.joined([Results.read(shard / name) for shard in shards if (shard / name).is_dir()])


def write_items(run_name: str, results: Mapping[str, Results]) -> FlyteDirectory:
    """Keep the results of all items as Parquet.

    Args:
        run_name: Name of the run.
        results: Of each model, by the name of its folder.
    """
    place = settings.result_path(run_name, "benchmarks")
    with artifacts.writing(place, "writing the results of benchmarks") as directory:
        for name, found in results.items():
            (directory / name).mkdir()
            found.write(directory / name)
        artifacts.write_manifest(directory, "benchmarks", {"models": list(results)})
    return upload(place)


def _samples(config: RunConfig, training: TrainingResult) -> tuple[EvalReport, EvalReport] | None:
    """Answers to the run's prompts before and after training, if these are what the training was asked."""
    if training.before is None or training.asked != Asked.of(config):
        return None
    return training.before, training.after

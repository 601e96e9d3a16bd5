"""Join what the shards of benchmarks measured, compare models on the same items, and decide."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import cpu_task
from tasks.transfer import download, upload
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.config.publishing import GateConfig
from thriftune.inference.benchmarks.results import Results
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.verdict import Verdict, decide
from thriftune.training.held_out import EvalReport
from thriftune.training.result import Asked, TrainingResult

logger = logging.getLogger("thriftune.tasks.compare_benchmarks")

BASE = "base"  # the folder of a shard with the results of the model itself
_TUNED = "tuned"


class ComparedBenchmarks(NamedTuple):
    """Base and tuned on the same items, what the gate decides (None without one), and the results item by item."""

    comparison: Comparison
    verdict: Verdict | None
    items: FlyteDirectory


@task(**cpu_task())
def compare_benchmarks(
    config: RunConfig,
    repeats: int,
    base: list[FlyteDirectory],
    tuned: list[FlyteDirectory],
    served: list[FlyteDirectory],
    adapter: str,
    training: TrainingResult,
) -> ComparedBenchmarks:
    """Compare a run's result with its base, and decide whether it may be published.

    Args:
        config: The run.
        repeats: How often the base was measured.
        base: Results of its shards: those of the first time, then those of the next.
        tuned: Results of the shards of the result.
        served: Those that the index had.
        adapter: What the adapter is known by whose results these are; empty for a model.
        training: What was measured while it trained, with answers before and after.

    Returns:
        The comparison, the verdict, and all results as Parquet.
    """
    measured = joined(base, BASE, repeats)
    result = joined([*tuned, *served], adapter or BASE)[0]
    gate = config.publish.gate if config.publish else None
    confidence = gate.confidence if gate else GateConfig().confidence
    comparison = compare(measured, result, confidence, config.seed, _samples(config, training))
    verdict = decide(comparison, gate) if gate else None
    named = {BASE if not number else f"{BASE}-{number + 1}": one for number, one in enumerate(measured)}
    items = write_items(config.name, {**named, _TUNED: result})
    return ComparedBenchmarks(comparison, verdict, items)


def joined(shards: Sequence[FlyteDirectory], name: str, times: int = 1) -> list[Results]:
    """The results of a model, once for each time that it was measured.

    Args:
        shards: Results of its shards: those of the first time, then those of the next.
        name: The folder in each that has them; shards without it are those of other adapters.
        times: How often it was measured.
    """
    count = len(shards) // times
    found = [download(shard) / name for shard in shards]
    parts = [found[first * count : (first + 1) * count] for first in range(times)]
    return [Results.joined([Results.read(part) for part in own if part.is_dir()]) for own in parts]


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

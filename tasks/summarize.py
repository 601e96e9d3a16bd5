"""The end of a run: its numbers in one place."""

import json
import logging
from dataclasses import asdict

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import cpu_task
from tasks.transfer import place_of
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.disk import writing_to
from thriftune.inference.report import RunMetrics, summary_table
from thriftune.models.saving import SavedWeights
from thriftune.training.held_out import EvalReport
from thriftune.training.result import TrainingResult

logger = logging.getLogger("thriftune.tasks.summarize")


@task(**cpu_task())
def summarize(
    config: RunConfig,
    training: TrainingResult,
    model: FlyteDirectory,
    adapter: FlyteDirectory | None = None,
    merged: SavedWeights | None = None,
    saved_model: EvalReport | None = None,
) -> RunMetrics:
    """Put the numbers of a run together and print them as a table.

    Args:
        config: The run.
        training: What was measured while training.
        model: The model that came out.
        adapter: The adapter that came out, if any.
        merged: What merging it did to its loss, where it was merged.
        saved_model: The result on the held-out rows, where the run asks for it.

    Returns:
        All of it; a local run also finds it in outputs/<run>/<start time>/metrics.json.
    """
    outputs = {"model": place_of(model)} | ({"adapter": place_of(adapter)} if adapter else {})
    metrics = RunMetrics(config.name, config.method, training, outputs, merged, saved_model)
    logger.info("\n%s", summary_table(metrics))
    write_metrics(metrics)
    return metrics


def write_metrics(metrics: RunMetrics) -> None:
    """Write the numbers of a local run to where a person finds them; on a cluster Flyte keeps them."""
    if settings.is_local():
        file = settings.result_place(metrics.name, "metrics.json")
        with writing_to(file, "writing the metrics"):
            artifacts.write_text(file, json.dumps(asdict(metrics), indent=2) + "\n")

"""The end of a run: put its metrics together."""

import json
import logging
from dataclasses import asdict

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import cpu_task
from tasks.transfer import uri_of
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
    """Put the metrics of a run together, and log them as a table.

    Args:
        config: The run.
        training: What was measured during training.
        model: The resulting model.
        adapter: The resulting adapter; None if every weight trained.
        merged: What merging it did to its loss; None if it was not merged.
        saved_model: The saved result measured again on the held-out rows; None if the run does not ask for it.

    Returns:
        The metrics; a local run also writes them to outputs/<run>/<start time>/metrics.json.
    """
    outputs = {"model": uri_of(model)} | ({"adapter": uri_of(adapter)} if adapter else {})
    metrics = RunMetrics(config.name, config.method, training, outputs, merged, saved_model)
    logger.info("\n%s", summary_table(metrics))
    write_metrics(metrics)
    return metrics


def write_metrics(metrics: RunMetrics) -> None:
    """Write the metrics of a local run to its results; on a cluster Flyte keeps them."""
    if settings.is_local():
        file = settings.result_path(metrics.name, "metrics.json")
        with writing_to(file, "writing the metrics"):
            artifacts.write_text(file, json.dumps(asdict(metrics), indent=2) + "\n")

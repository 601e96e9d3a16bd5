"""The end of a run: put its metrics together, and show them."""

import json
import logging
from dataclasses import asdict, replace

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, pages, results, settings
from tasks.declaring import cpu_task
from tasks.transfer import uri_of
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.disk import writing_to
from thriftune.inference.cost import Cost
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.verdict import Verdict
from thriftune.inference.report import RunMetrics, summary_table
from thriftune.inference.timing import Timing
from thriftune.models.merging.comparing import MergedWeights
from thriftune.training.held_out import EvalReport
from thriftune.training.result import Asked, TrainingResult
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.summarize")

_NO_ANSWERS = (
    "The training was another run's, which had other prompts: its answers are left out. Where a node of the "
    "catalogue holds the result, the same run started again answers this run's prompts without training."
)


@task(**cpu_task(), enable_deck=True, deck_fields=())
def summarize(
    config: RunConfig,
    plan: TrainingPlan,
    training: TrainingResult,
    training_key: str,
    model: FlyteDirectory,
    adapter: FlyteDirectory | None = None,
    merged: MergedWeights | None = None,
    saved_model: EvalReport | None = None,
    before: EvalReport | None = None,
    after: EvalReport | None = None,
    comparison: Comparison | None = None,
    verdict: Verdict | None = None,
    items: FlyteDirectory | None = None,
    contamination: dict[str, float] | None = None,
) -> RunMetrics:
    """Put the metrics of a run together, log them as a table, and show them on a page.

    Args:
        config: The run.
        plan: Its plan.
        training: What was measured during training.
        training_key: What Flyte's cache knows the training by. It is in the cache now, and its checkpoints are removed.
        model: The resulting model.
        adapter: The resulting adapter; None if every weight trained.
        merged: What merging it did to its loss and next tokens; None if it was not merged.
        saved_model: The saved result measured again on the held-out rows; None if the run does not ask for it.
        before: Answers of the model before training, where an earlier run trained and was asked otherwise; else None.
        after: Answers of the result, in the same case.
        comparison: Base and result on the run's benchmarks; None if it has none.
        verdict: What its gate decides by them; None if it has none.
        items: The results of both on each item; None if there are none.
        contamination: By benchmark, the share of its items that are in the rows to train on.

    Returns:
        The metrics; a local run also writes them to outputs/<run>/<start time>/metrics.json.

    Raises:
        ResultError: A result is not in the store, as where the bucket's rules removed what the cache serves.
    """
    made = {"model": model, "adapter": adapter, "benchmarks": items}
    outputs = {kind: uri_of(one) for kind, one in made.items() if one is not None}
    results.require_there(outputs)
    asked = Asked.of(config)
    remarks = [_NO_ANSWERS] if training.asked != asked and after is None else []
    for remark in remarks:
        logger.warning(remark)
    cost = Cost.of(plan, training, is_of_another_run=settings.is_of_another_run(uri_of(adapter or model)))
    answering = _answering(training, asked, before, after)
    metrics = RunMetrics(
        config.name, config.method, answering, outputs, merged, saved_model, cost, remarks, Timing.of(plan, training),
        comparison, verdict, contamination or {},
    )  # fmt: skip
    logger.info("\n%s", summary_table(metrics))
    write_metrics(metrics)
    pages.show_result(metrics)
    checkpoints.remove(training_key)
    return metrics


def _answering(
    training: TrainingResult, asked: Asked, before: EvalReport | None, after: EvalReport | None
) -> TrainingResult:
    """A training with the answers to a run's own prompts, or with none: never with those to other prompts.

    Args:
        training: The training, which may come from the cache.
        asked: What the run asks.
        before: Answers of the model before training, given again; None if there are none.
        after: Answers of the model after training, in the same case.
    """
    if training.asked == asked:
        return training
    return replace(
        training,
        before=_with_answers_of(before, training.before) if training.before else None,
        after=_with_answers_of(after, training.after),
        asked=asked,
    )


def _with_answers_of(other: EvalReport | None, measured: EvalReport) -> EvalReport:
    return replace(measured, prompts=other.prompts if other else [], answers=other.answers if other else [])


def write_metrics(metrics: RunMetrics) -> None:
    """Write the metrics of a local run to its results; on a cluster Flyte keeps them."""
    if settings.is_local():
        file = settings.result_path(metrics.name, "metrics.json")
        with writing_to(file, "writing the metrics"):
            artifacts.write_text(file, json.dumps(asdict(metrics), indent=2) + "\n")

"""What both fine-tuning workflows share: the nodes before training, and the types they return."""

from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks.fetch_model import fetch_model
from tasks.plan import plan
from tasks.preflight import preflight
from tasks.prepare_dataset import prepare_dataset
from thriftune.config import Method
from thriftune.report import RunMetrics
from thriftune.training_plan import TrainingPlan


class FinetuneResult(NamedTuple):
    """What fine-tuning returns: an ordinary model directory, the numbers, and the plan it ran on."""

    model: FlyteDirectory
    metrics: RunMetrics
    plan: TrainingPlan


class TrainedOnPlan(NamedTuple):
    """What the part of a run that follows the plan returns."""

    model: FlyteDirectory
    metrics: RunMetrics


class Ready(NamedTuple):
    """The promises of a workflow up to training."""

    plan: Any
    model: Any
    dataset: Any


def plan_and_prepare(config: Any, method: Method, table: Any = None) -> Ready:
    """Add the nodes that plan a run, check it, fetch its model and prepare its data. Called while a workflow compiles.

    Args:
        config: The workflow's `config` (a promise of a RunConfig).
        method: What the workflow runs.
        table: The workflow's table (a promise), if it takes one.

    Returns:
        Promises of the plan, the base model and the dataset. Nothing is fetched before the run is planned and checked.
    """
    planned = plan(config=config, method=method, has_table=table is not None)
    checked = preflight(config=config, plan=planned, table=table)
    fetched = fetch_model(model=checked.model, version=checked.model_version)
    dataset = prepare_dataset(
        data=checked.data,
        seed=config.seed,
        data_version=checked.data_version,
        tokenizer=fetched.tokenizer,
        tokenizer_version=fetched.tokenizer_version,
        trust_remote_code=config.model.trust_remote_code,
        table=table,
    )
    return Ready(planned, fetched.model, dataset)

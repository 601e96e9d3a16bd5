"""What the fine-tuning workflows are made of: the nodes before training, training itself, and the types they return."""

from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks.fetch_model import fetch_model
from tasks.pin import pin
from tasks.plan import plan
from tasks.preflight import Checked, preflight
from tasks.prepare_dataset import prepare_dataset
from tasks.provisioning import on_cpu_node
from thriftune.config import RunConfig
from thriftune.inference.report import RunMetrics
from thriftune.planning import pod_requests
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


class Planned(NamedTuple):
    """The promises of a workflow up to the plan: the plan, and the versions that model and data have now."""

    plan: Any
    model_version: Any
    data_version: Any


class Ready(NamedTuple):
    """The promises of a dynamic part up to training."""

    model: Any
    dataset: Any


def plan_and_check(config: Any, workflow: str, table: Any = None) -> Planned:
    """Add the nodes that plan a run and check it. Called while a workflow compiles.

    Args:
        config: The workflow's `config` (a promise of a RunConfig).
        workflow: Name of the workflow.
        table: The workflow's table (a promise), if it takes one.
    """
    made = plan(config=config, workflow=workflow, pinned=pin(config=config), has_table=table is not None)
    checked: Checked = preflight(config=config, plan=made, table=table)
    return Planned(checked.plan, checked.model_version, checked.data_version)


def fetch_and_prepare(
    config: RunConfig, plan: TrainingPlan, model_version: str, data_version: str, table: Any = None
) -> Ready:
    """Add the nodes that fetch the model and prepare the data. Called inside `@dynamic`, where the values are known.

    Not in the workflow itself: how much disk a model needs is in the plan. And Flyte's engine writes an attribute of a
    promise, as `config.model`, with its keys in another order each time, so that a cached task is not found again.
    https://github.com/flyteorg/flyte/issues/6517 (open; seen in flytepropeller's attr_path_resolver.go)

    Args:
        config: The run.
        plan: Its plan.
        model_version: What the model's source holds now.
        data_version: What the data's sources hold now.
        table: The workflow's table, if it takes one.
    """
    fetched = fetch_model(model=config.model, version=model_version)
    on_cpu_node(fetched.model, plan, pod_requests.fetching(config, plan))
    dataset = prepare_dataset(
        data=config.data,
        seed=config.seed,
        data_version=data_version,
        tokenizer=fetched.tokenizer,
        tokenizer_version=fetched.tokenizer_version,
        trust_remote_code=config.model.trust_remote_code,
        table=table,
    )
    return Ready(fetched.model, dataset)

"""Parts of the fine-tuning workflows: the nodes before training, and the types that the workflows return."""

from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks.fetch_model import fetch_model
from tasks.pin import pin
from tasks.plan import plan
from tasks.preflight import Checked, preflight
from tasks.prepare_dataset import prepare_dataset
from tasks.provisioning import on_cpu_node
from tasks.results import Steps, Versions
from thriftune.config import RunConfig
from thriftune.inference.report import RunMetrics
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan


class FinetuneResult(NamedTuple):
    """The result of fine-tuning: an ordinary model directory, the metrics, and the plan it ran on."""

    model: FlyteDirectory
    metrics: RunMetrics
    plan: TrainingPlan


class TrainedOnPlan(NamedTuple):
    """The result of the part of a run after the plan."""

    model: FlyteDirectory
    metrics: RunMetrics


class Planned(NamedTuple):
    """The promises of a workflow up to the plan: it, and present versions of model, tokenizer, data and benchmarks."""

    plan: Any
    model_version: Any
    tokenizer_version: Any
    data_version: Any
    benchmarks_version: Any


class Ready(NamedTuple):
    """The promises of the dynamic part up to training: the model, the dataset, and the model's tokenizer."""

    model: Any
    dataset: Any
    tokenizer: Any


def plan_and_check(config: Any, workflow: str, table: Any = None) -> Planned:
    """Add the nodes that plan and check a run. Called while a workflow is compiled.

    Args:
        config: The workflow's `config` (a promise of a RunConfig).
        workflow: Name of the workflow.
        table: The workflow's table (a promise), if it takes one.
    """
    made = plan(config=config, workflow=workflow, pinned=pin(config=config), has_table=table is not None)
    checked: Checked = preflight(config=config, plan=made, table=table)
    versions = (checked.model_version, checked.tokenizer_version, checked.data_version, checked.benchmarks_version)
    return Planned(checked.plan, *versions)


def fetch_and_prepare(
    config: RunConfig, plan: TrainingPlan, versions: Versions, steps: Steps, table: Any = None
) -> Ready:
    """Add the nodes that fetch the model and prepare the data. Called inside `@dynamic`, where the values are known.

    They are not in the workflow itself, since only the plan knows how much disk a model needs. Also, Flyte's engine
    writes an attribute of a promise, such as `config.model`, with its keys in another order each time, so that a cached
    task is not found again.
    https://github.com/flyteorg/flyte/issues/6517 (open; seen in flytepropeller's attr_path_resolver.go)

    Args:
        config: The run.
        plan: Its plan.
        versions: Present versions of model, tokenizer and data.
        steps: What the cached steps are known by.
        table: The workflow's table, if it takes one.
    """
    fetched = fetch(config, plan, versions, steps)
    dataset = prepare(config, versions, steps, fetched.tokenizer, table)
    return Ready(fetched.model, dataset, fetched.tokenizer)


def fetch(config: RunConfig, plan: TrainingPlan, versions: Versions, steps: Steps) -> Any:
    """Add the node that fetches the model. Called inside `@dynamic`.

    Args:
        config: The run.
        plan: Its plan.
        versions: Present versions of model, tokenizer and data.
        steps: What the cached steps are known by.

    Returns:
        The promises of `FetchedModel`.
    """
    fetched = fetch_model(model=config.model, version=versions.model, **steps.model.inputs)
    on_cpu_node(fetched.model, plan, pod_requests.fetching(config, plan))
    return fetched


def prepare(config: RunConfig, versions: Versions, steps: Steps, tokenizer: Any, table: Any = None) -> Any:
    """Add the node that prepares the data. Called inside `@dynamic`.

    Args:
        config: The run.
        versions: Present versions of model, tokenizer and data.
        steps: What the cached steps are known by.
        tokenizer: The model's tokenizer (a promise).
        table: The workflow's table, if it takes one.
    """
    return prepare_dataset(
        data=config.data,
        seed=config.seed,
        data_version=versions.data,
        tokenizer=tokenizer,
        tokenizer_version=versions.tokenizer,
        trust_remote_code=config.model.trust_remote_code,
        table=table,
        labels=list(config.labels),
        **steps.dataset.inputs,
    )

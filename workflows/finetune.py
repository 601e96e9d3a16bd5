"""Fine-tuning by any method: `method` says what trains, `strategy` where weights lie.

pyflyte run workflows/finetune.py finetune --config configs/demo-qlora.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.structured import StructuredDataset

from tasks.declaring import dynamic_task
from tasks.evaluate import evaluate
from tasks.merge_adapter import merge_adapter
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.publish import publish
from tasks.summarize import summarize
from tasks.train import start_version, training_task
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan
from workflows.stages import FinetuneResult, TrainedOnPlan, fetch_and_prepare, plan_and_check


@dynamic(**dynamic_task())
def train_on_plan(
    config: RunConfig,
    plan: TrainingPlan,
    model_version: str,
    data_version: str,
    table: StructuredDataset | None = None,
) -> TrainedOnPlan:
    """Fetch, prepare, train on the nodes of the plan (which validates before, during and after), and merge."""
    model, dataset = fetch_and_prepare(config, plan, model_version, data_version, table)
    key = f"{plan.fingerprint} {start_version(config)}".strip()
    run = {"config": config, "plan": plan, "cache_key": key, "dataset": dataset}
    trained = on_planned_node(training_task(plan)(**run, model=model), plan, as_job=True)
    result, adapter, merged, saved_model = trained.model, None, None, None
    if not METHODS[config.method].trains_weights:
        adapter = trained.model
        if config.lora_or_default.merge:
            result, merged = merge_adapter(config=config, model=model, adapter=adapter, dataset=dataset)
            on_cpu_node(result, plan, pod_requests.merging(config, plan))
    if config.evaluation.saved_model:
        is_unmerged = adapter is not None and merged is None  # promises have no truth value
        measured = {"model": model, "adapter": adapter} if is_unmerged else {"model": result}
        there = plan.of_evaluation
        saved_model = on_planned_node(evaluate(**{**run, "plan": there}, **measured), there)
    metrics = summarize(
        config=config,
        training=trained.training,
        model=result,
        adapter=adapter,
        merged=merged,
        saved_model=saved_model,
    )
    if config.publish:
        metrics = publish(result=result, to=config.publish, metrics=metrics)
        on_cpu_node(metrics, plan, pod_requests.publishing(config, plan))
    return TrainedOnPlan(model=result, metrics=metrics)


@workflow
def finetune(config: RunConfig) -> FinetuneResult:
    """Fine-tune a model by the method that the run names.

    Args:
        config: The run: a YAML file like those in configs/.

    Returns:
        The model directory (an adapter's where the run says `merge: false`), the metrics and the plan.
    """
    planned = plan_and_check(config, "finetune")
    trained = train_on_plan(config=config, **planned._asdict())
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)


@workflow
def finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Fine-tune a model by the method that the run names, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `finetune` returns.
    """
    planned = plan_and_check(config, "finetune", table)
    trained = train_on_plan(config=config, **planned._asdict(), table=table)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)

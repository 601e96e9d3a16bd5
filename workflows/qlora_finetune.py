"""QLoRA fine-tuning: adapters on a 4-bit base model, merged into it at the end.

pyflyte run workflows/qlora_finetune.py qlora_finetune --config configs/demo-qlora.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.structured import StructuredDataset

from tasks.declaring import dynamic_task
from tasks.evaluate import evaluate
from tasks.merge_adapter import merge_adapter
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.publish import publish
from tasks.summarize import summarize
from tasks.train_qlora import adapter_version, train_qlora
from thriftune.config import RunConfig
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan
from workflows.stages import FinetuneResult, TrainedOnPlan, fetch_and_prepare, plan_and_check


@dynamic(**dynamic_task())
def train_qlora_on_plan(
    config: RunConfig,
    plan: TrainingPlan,
    model_version: str,
    data_version: str,
    table: StructuredDataset | None = None,
) -> TrainedOnPlan:
    """Fetch, prepare, evaluate, train adapters on the node of the plan, evaluate again, merge."""
    model, dataset = fetch_and_prepare(config, plan, model_version, data_version, table)
    key = f"{plan.fingerprint} {adapter_version(config)}".strip()
    run = {"config": config, "plan": plan, "cache_key": key, "dataset": dataset, "model": model}
    before = on_planned_node(evaluate(**run), plan)
    trained = on_planned_node(train_qlora(**run), plan, as_job=True)
    # What is measured before training also tries whether the model can be packed: a refusal costs no training.
    before >> trained.model
    result, adapter, merged = trained.model, trained.model, None
    # Before anything is measured of it: a local run makes one node after the other.
    if config.lora_or_default.merge:
        result, merged = merge_adapter(config=config, model=model, adapter=adapter, dataset=dataset)
        on_cpu_node(result, plan, pod_requests.merging(config, plan))
    after = on_planned_node(evaluate(**run, adapter=adapter), plan)
    metrics = summarize(
        config=config,
        before=before,
        after=after,
        training=trained.training,
        model=result,
        adapter=adapter,
        merged=merged,
    )
    if config.publish:
        metrics = publish(result=result, to=config.publish, metrics=metrics)
        on_cpu_node(metrics, plan, pod_requests.publishing(config, plan))
    return TrainedOnPlan(model=result, metrics=metrics)


@workflow
def qlora_finetune(config: RunConfig) -> FinetuneResult:
    """Train adapters on a 4-bit base model and merge them into it.

    Args:
        config: The run: a YAML file like those in configs/, with `method: qlora`.

    Returns:
        The merged model directory (the adapter's where the run says `merge: false`), the metrics and the plan.
    """
    planned = plan_and_check(config, "qlora")
    trained = train_qlora_on_plan(config=config, **planned._asdict())
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)


@workflow
def qlora_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Train adapters on a 4-bit base model and merge them into it, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `qlora_finetune` returns.
    """
    planned = plan_and_check(config, "qlora", table)
    trained = train_qlora_on_plan(config=config, **planned._asdict(), table=table)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)

"""Full fine-tuning with DeepSpeed ZeRO: every weight trains.

pyflyte run workflows/full_finetune.py full_finetune --config configs/demo-full.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.structured import StructuredDataset

from tasks.declaring import dynamic_task
from tasks.evaluate import evaluate
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.publish import publish
from tasks.summarize import summarize
from tasks.train_full import TRAIN_FULL
from thriftune.config import RunConfig
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan
from workflows.stages import FinetuneResult, TrainedOnPlan, fetch_and_prepare, plan_and_check


@dynamic(**dynamic_task())
def train_full_on_plan(
    config: RunConfig,
    plan: TrainingPlan,
    model_version: str,
    data_version: str,
    table: StructuredDataset | None = None,
) -> TrainedOnPlan:
    """Fetch, prepare, evaluate, train on the nodes of the plan, evaluate again."""
    model, dataset = fetch_and_prepare(config, plan, model_version, data_version, table)
    run = {"config": config, "plan": plan, "cache_key": plan.fingerprint, "dataset": dataset}
    before = on_planned_node(evaluate(**run, model=model), plan)
    trained = on_planned_node(TRAIN_FULL[plan.nodes](**run, model=model), plan, as_job=True)
    # What is measured before training also tries whether the model can be packed: a refusal costs no training.
    before >> trained.model
    after = on_planned_node(evaluate(**run, model=trained.model), plan)
    metrics = summarize(config=config, before=before, after=after, training=trained.training, model=trained.model)
    if config.publish:
        metrics = publish(result=trained.model, to=config.publish, metrics=metrics)
        on_cpu_node(metrics, plan, pod_requests.publishing(config, plan))
    return TrainedOnPlan(model=trained.model, metrics=metrics)


@workflow
def full_finetune(config: RunConfig) -> FinetuneResult:
    """Fine-tune every weight of a model under DeepSpeed ZeRO.

    Args:
        config: The run: a YAML file like those in configs/, with `method: full`.

    Returns:
        The model directory, the metrics and the plan.
    """
    planned = plan_and_check(config, "full")
    trained = train_full_on_plan(config=config, **planned._asdict())
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)


@workflow
def full_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Fine-tune every weight of a model under DeepSpeed ZeRO, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `full_finetune` returns.
    """
    planned = plan_and_check(config, "full", table)
    trained = train_full_on_plan(config=config, **planned._asdict(), table=table)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)

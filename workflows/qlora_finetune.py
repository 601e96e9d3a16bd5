"""QLoRA fine-tuning: adapters on a 4-bit base model, merged into it at the end.

pyflyte run workflows/qlora_finetune.py qlora_finetune --config configs/demo-qlora.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.directory import FlyteDirectory
from flytekit.types.structured import StructuredDataset

from tasks import settings
from tasks.evaluate import evaluate
from tasks.merge_adapter import merge_adapter
from tasks.provisioning import on_planned_node
from tasks.publish import publish
from tasks.summarize import summarize
from tasks.train_qlora import train_qlora
from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan
from workflows.stages import FinetuneResult, TrainedOnPlan, plan_and_prepare


@dynamic(container_image=settings.IMAGE, requests=settings.CPU_TASK, environment=settings.POD_ENVIRONMENT)
def train_qlora_on_plan(
    config: RunConfig, plan: TrainingPlan, model: FlyteDirectory, dataset: FlyteDirectory
) -> TrainedOnPlan:
    """Evaluate, train adapters on the node of the plan, evaluate again, merge."""
    before = on_planned_node(evaluate(config=config, plan=plan, model=model, dataset=dataset), plan)
    trained = on_planned_node(train_qlora(config=config, plan=plan, model=model, dataset=dataset), plan)
    # What is measured before training also tries whether the model can be packed: a refusal costs no training.
    before >> trained.model
    adapter = trained.model
    after = on_planned_node(evaluate(config=config, plan=plan, model=model, dataset=dataset, adapter=adapter), plan)
    merge = config.lora_or_default.merge
    result = merge_adapter(config=config, model=model, adapter=adapter) if merge else adapter
    published = publish(result=result, to=config.publish, run_name=config.name) if config.publish else ""
    metrics = summarize(
        config=config,
        before=before,
        after=after,
        training=trained.training,
        model=result,
        adapter=adapter,
        published=published,
    )
    return TrainedOnPlan(model=result, metrics=metrics)


@workflow
def qlora_finetune(config: RunConfig) -> FinetuneResult:
    """Train adapters on a 4-bit base model and merge them into it.

    Args:
        config: The run: a YAML file like those in configs/, with `method: qlora`.

    Returns:
        The merged model directory (the adapter's where the run says `merge: false`), the metrics and the plan.
    """
    ready = plan_and_prepare(config, "qlora")
    trained = train_qlora_on_plan(config=config, plan=ready.plan, model=ready.model, dataset=ready.dataset)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=ready.plan)


@workflow
def qlora_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Train adapters on a 4-bit base model and merge them into it, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `qlora_finetune` returns.
    """
    ready = plan_and_prepare(config, "qlora", table)
    trained = train_qlora_on_plan(config=config, plan=ready.plan, model=ready.model, dataset=ready.dataset)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=ready.plan)

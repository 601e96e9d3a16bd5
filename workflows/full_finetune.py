"""Full fine-tuning with DeepSpeed ZeRO: every weight trains.

pyflyte run workflows/full_finetune.py full_finetune --config configs/demo-full.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.directory import FlyteDirectory
from flytekit.types.structured import StructuredDataset

from tasks import settings
from tasks.evaluate import evaluate
from tasks.provisioning import on_planned_node
from tasks.publish import publish
from tasks.summarize import summarize
from tasks.train_full import TRAIN_FULL
from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan
from workflows.stages import FinetuneResult, TrainedOnPlan, plan_and_prepare


@dynamic(container_image=settings.IMAGE, requests=settings.CPU_TASK, environment=settings.POD_ENVIRONMENT)
def train_full_on_plan(
    config: RunConfig, plan: TrainingPlan, model: FlyteDirectory, dataset: FlyteDirectory
) -> TrainedOnPlan:
    """Evaluate, train on the nodes of the plan, evaluate again."""
    train = TRAIN_FULL[plan.nodes]
    before = on_planned_node(evaluate(config=config, plan=plan, model=model, dataset=dataset), plan)
    trained = on_planned_node(train(config=config, plan=plan, model=model, dataset=dataset), plan)
    # What is measured before training also tries whether the model can be packed: a refusal costs no training.
    before >> trained.model
    after = on_planned_node(evaluate(config=config, plan=plan, model=trained.model, dataset=dataset), plan)
    published = publish(result=trained.model, to=config.publish, run_name=config.name) if config.publish else ""
    metrics = summarize(
        config=config, before=before, after=after, training=trained.training, model=trained.model, published=published
    )
    return TrainedOnPlan(model=trained.model, metrics=metrics)


@workflow
def full_finetune(config: RunConfig) -> FinetuneResult:
    """Fine-tune every weight of a model under DeepSpeed ZeRO.

    Args:
        config: The run: a YAML file like those in configs/, with `method: full`.

    Returns:
        The model directory, the metrics and the plan.
    """
    ready = plan_and_prepare(config, "full")
    trained = train_full_on_plan(config=config, plan=ready.plan, model=ready.model, dataset=ready.dataset)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=ready.plan)


@workflow
def full_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Fine-tune every weight of a model under DeepSpeed ZeRO, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `full_finetune` returns.
    """
    ready = plan_and_prepare(config, "full", table)
    trained = train_full_on_plan(config=config, plan=ready.plan, model=ready.model, dataset=ready.dataset)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=ready.plan)

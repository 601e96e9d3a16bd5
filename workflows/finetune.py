"""Fine-tuning by any method: `method` says what trains, `strategy` where weights lie.

pyflyte run workflows/finetune.py finetune --config configs/demo-qlora.yaml
"""

from flytekit import dynamic, workflow
from flytekit.types.structured import StructuredDataset

from tasks.declaring import dynamic_task
from tasks.export import export_result
from tasks.merge_adapter import merge_adapter
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.publish import publish
from tasks.results import Versions, steps_of
from tasks.summarize import summarize
from tasks.train import training_task
from tasks.training_body import start_of, start_version
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan
from workflows.benchmarking import compare_with_base, measure_base
from workflows.measuring import Made, measure_again
from workflows.stages import FinetuneResult, TrainedOnPlan, fetch_and_prepare, plan_and_check


@dynamic(**dynamic_task())
def train_on_plan(
    config: RunConfig,
    plan: TrainingPlan,
    model_version: str,
    tokenizer_version: str,
    data_version: str,
    benchmarks_version: str = "",
    table: StructuredDataset | None = None,
) -> TrainedOnPlan:
    """Fetch, prepare, train on the nodes of the plan (which validates before, during and after), and merge."""
    versions = Versions(model_version, tokenizer_version, data_version, start_version(config), benchmarks_version)
    steps = steps_of(config, plan, versions)
    ready = fetch_and_prepare(config, plan, versions, steps, table)
    model, dataset = ready.model, ready.dataset
    base = measure_base(config, plan, steps, versions, ready)
    run = {"config": config, "plan": plan, "dataset": dataset}
    trained = on_planned_node(training_task(plan)(**run, model=model, **steps.training.inputs), plan, as_job=True)
    result, adapter, merged = trained.model, None, None
    if not METHODS[config.method].trains_weights:
        adapter = trained.model
    if steps.merged is not None:
        result, merged = merge_adapter(
            config=config, model=model, adapter=adapter, dataset=dataset, **steps.merged.inputs
        )
        on_cpu_node(result, plan, pod_requests.merging(config, plan))
    parts = Made(model, dataset, result, adapter, start_of(config))
    measured = measure_again(config, plan, steps, parts)
    compared = compare_with_base(config, base, steps, parts, trained.training)
    made = {"training": trained.training, "model": result, "adapter": adapter, "merged": merged}
    reports = {**measured._asdict(), **compared._asdict()}
    metrics = summarize(config=config, plan=plan, training_key=steps.training.cache_key, **made, **reports)
    if config.export:
        metrics = export_result(result=result, dataset=dataset, config=config, to=config.export, metrics=metrics)
        on_cpu_node(metrics, plan, pod_requests.exporting(config, plan))
    if config.publish:
        metrics = publish(result=result, config=config, to=config.publish, metrics=metrics)
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

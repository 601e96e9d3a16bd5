"""Loss, perplexity and answers on held-out rows."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks.declaring import TRAIN_CACHE, cache, node_task
from tasks.transfer import download
from thriftune.config import RunConfig
from thriftune.inference import evaluation
from thriftune.inference.evaluation import EvalReport
from thriftune.models.loading import as_stored, planned_placement
from thriftune.training_plan import TrainingPlan


@task(**node_task(), cache=cache(TRAIN_CACHE, "plan"))
def evaluate(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    model: FlyteDirectory,
    dataset: FlyteDirectory,
    adapter: FlyteDirectory | None = None,
) -> EvalReport:
    """Measure a model on the held-out rows: in 4 bits where QLoRA trains on it, in fp32 where it is saved so.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What Flyte's cache knows the plan by, as another price makes no other result.
        model: The model.
        dataset: The prepared dataset.
        adapter: An adapter to put on the model.

    Returns:
        The report.
    """
    model_dir, placement = download(model), planned_placement(config, plan)
    if config.method == "full":
        placement = as_stored(placement, model_dir)
    return evaluation.evaluate(
        model_dir,
        download(dataset),
        config.evaluation,
        style=config.data.prompt_format,
        placement=placement,
        adapter_dir=download(adapter) if adapter else None,
        packing=config.data.packing,
        trust_remote_code=config.model.trust_remote_code,
    )

"""Loss, perplexity and answers on held-out rows."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from pod_templates import with_shared_memory
from tasks import settings
from tasks.transfer import download
from thriftune import evaluation
from thriftune.config import RunConfig
from thriftune.evaluation import EvalReport
from thriftune.loading import planned_placement
from thriftune.training_plan import TrainingPlan


@task(
    container_image=settings.IMAGE,
    pod_template=with_shared_memory(settings.SHARED_MEMORY),
    retries=settings.RETRIES,
    environment=settings.POD_ENVIRONMENT,
)
def evaluate(
    config: RunConfig,
    plan: TrainingPlan,
    model: FlyteDirectory,
    dataset: FlyteDirectory,
    adapter: FlyteDirectory | None = None,
) -> EvalReport:
    """Measure a model on the held-out rows, held in memory as it is trained: in 4 bits for QLoRA.

    Args:
        config: The run.
        plan: Its plan.
        model: The model.
        dataset: The prepared dataset.
        adapter: An adapter to put on the model.

    Returns:
        The report.
    """
    return evaluation.evaluate(
        download(model),
        download(dataset),
        config.evaluation,
        style=config.data.prompt_format,
        placement=planned_placement(config, plan),
        adapter_dir=download(adapter) if adapter else None,
        packing=config.data.packing,
        trust_remote_code=config.model.trust_remote_code,
    )

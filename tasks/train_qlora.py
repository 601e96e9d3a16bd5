"""QLoRA training: one process, model-parallel over the GPUs of one node."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from pod_templates import with_shared_memory
from tasks import settings
from tasks.train_full import Trained
from tasks.transfer import download, upload
from thriftune import qlora
from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan


@task(
    container_image=settings.IMAGE,
    pod_template=with_shared_memory(settings.SHARED_MEMORY),
    retries=settings.RETRIES,
    environment=settings.POD_ENVIRONMENT,
)
def train_qlora(config: RunConfig, plan: TrainingPlan, model: FlyteDirectory, dataset: FlyteDirectory) -> Trained:
    """Train adapters on a 4-bit base model.

    Args:
        config: The run.
        plan: Its plan.
        model: The base model.
        dataset: The prepared dataset.

    Returns:
        The adapter directory, and what was measured.
    """
    resume_from = config.lora_or_default.resume_from
    place = settings.result_place(config.name, "adapter")
    adapter_dir = download(FlyteDirectory(resume_from)) if resume_from else None
    result = qlora.train(config, plan, download(model), download(dataset), place, adapter_dir)
    return Trained(model=upload(place), training=result)

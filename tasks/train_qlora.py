"""QLoRA training: one process, model-parallel over the GPUs of one node."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import interruption, pages, settings
from tasks.checkpoints import checkpoint_place
from tasks.declaring import TRAIN_CACHE, cache, node_task, wandb_secrets
from tasks.train_full import Trained
from tasks.transfer import download, transient_errors_retried, upload
from thriftune.config import RunConfig
from thriftune.models import fetching as models
from thriftune.models.adapter_weights import RESUME_FROM
from thriftune.training import qlora
from thriftune.training_plan import TrainingPlan


@task(**node_task(None, *wandb_secrets()), cache=cache(TRAIN_CACHE, "plan"), enable_deck=True, deck_fields=())
def train_qlora(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    model: FlyteDirectory,
    dataset: FlyteDirectory,
) -> Trained:
    """Train adapters on a 4-bit base model.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What Flyte's cache knows the plan by, as another price makes no other result.
        model: The base model.
        dataset: The prepared dataset.

    Returns:
        The adapter directory, and what was measured.
    """
    resume_from = config.lora_or_default.resume_from
    place = settings.result_place(config.name, "adapter")
    with transient_errors_retried():
        checkpoints = checkpoint_place(config.name)
        adapter_dir = download(FlyteDirectory(resume_from)) if resume_from else None
        with interruption.training(config, in_workers=False):
            result = qlora.train(config, plan, download(model), download(dataset), place, adapter_dir, checkpoints)
    output = upload(place)  # first: a page that fails must not cost the adapter
    pages.show_training(config.name, result)
    return Trained(model=output, training=result)


def adapter_version(config: RunConfig) -> str:
    """What the adapter to go on from holds now, which its place does not say; empty where a run starts one."""
    resume_from = config.lora_or_default.resume_from
    if not resume_from:
        return ""
    with transient_errors_retried():
        return models.version(resume_from, field=RESUME_FROM)

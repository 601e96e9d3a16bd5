"""The adapter merged into the base model."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import TRAIN_CACHE, cache, cpu_task
from tasks.transfer import download, upload
from thriftune import merging
from thriftune.config import RunConfig


@task(**cpu_task(), cache=cache(TRAIN_CACHE))
def merge_adapter(config: RunConfig, model: FlyteDirectory, adapter: FlyteDirectory) -> FlyteDirectory:
    """Merge an adapter into the unquantized base model.

    Args:
        config: The run.
        model: The base model.
        adapter: The adapter.

    Returns:
        An ordinary model directory.
    """
    place = settings.result_place(config.name, "model")
    merging.merge(
        download(model),
        download(adapter),
        place,
        save_dtype=config.training.save_dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
    return upload(place)

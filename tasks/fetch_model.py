"""The base model, once, in the blob store."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.transfer import transient_errors_retried, upload
from thriftune import artifacts, models
from thriftune.config import ModelConfig

logger = logging.getLogger("thriftune.tasks.fetch_model")


@task(
    **settings.hub_task(),
    cache=settings.cache(settings.FETCH_CACHE),
)
def fetch_model(model: ModelConfig, version: str) -> FlyteDirectory:
    """Bring a base model into one directory of safetensors + tokenizer.

    Args:
        model: The model section of a run.
        version: What the source held when the run was planned.

    Returns:
        The directory.
    """
    place = settings.cached_place("model", artifacts.key_of(model.model_dump_json(), version, settings.FETCH_CACHE))
    if artifacts.is_whole(place):
        logger.info("The base model is already in %s", place)
    else:
        with transient_errors_retried():
            models.fetch(model.source, version, place, settings.hub_token(), trust_remote_code=model.trust_remote_code)
    return upload(place)

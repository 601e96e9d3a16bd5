"""Fetch the base model into the blob store once, and its tokenizer separately for tasks that need no weights."""

import logging
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import results, settings
from tasks.declaring import FETCH_CACHE, cache, hub_task
from tasks.transfer import transient_errors_retried, upload
from thriftune import artifacts, damage
from thriftune.config import ModelConfig
from thriftune.models import fetching as models

logger = logging.getLogger("thriftune.tasks.fetch_model")


class FetchedModel(NamedTuple):
    """A base model, and its tokenizer in a separate directory."""

    model: FlyteDirectory
    tokenizer: FlyteDirectory


@task(**hub_task(), cache=cache(FETCH_CACHE, "model", "version", "record"))
def fetch_model(model: ModelConfig, version: str, cache_key: str, record: str) -> FetchedModel:
    """Fetch a base model into one directory with safetensors and tokenizer.

    Args:
        model: The model section of a run.
        version: Version of the source when the run was planned.
        cache_key: What Flyte's cache knows the result by, and the local one.
        record: URL to write the place of the result to; empty in a local run.

    Returns:
        The directory, and its tokenizer in another.
    """
    key = artifacts.key_of(cache_key)
    place, tokenizer_place = settings.cache_path("model", key), settings.cache_path("tokenizer", key)
    if damage.is_reusable(place):
        logger.info("The base model is already in %s", place)
    else:
        with transient_errors_retried():
            models.fetch(model.source, version, place, settings.hub_token(), trust_remote_code=model.trust_remote_code)
    if not damage.is_reusable(tokenizer_place):
        models.copy_tokenizer(place, tokenizer_place, trust_remote_code=model.trust_remote_code)
    fetched = FetchedModel(upload(place), upload(tokenizer_place))
    results.remember(record, fetched.model, fetched.tokenizer)
    return fetched

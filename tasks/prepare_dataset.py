"""The tokenized dataset, once, in the blob store."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.transfer import download, transient_errors_retried, upload
from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.sources import is_file_source

logger = logging.getLogger("thriftune.tasks.prepare_dataset")


@task(
    **settings.hub_task(),
    # The model is named by its version; where its directory lies makes no difference.
    cache=settings.cache(settings.PREPARE_CACHE, "model"),
)
def prepare_dataset(
    data: DataConfig, seed: int, data_version: str, model: FlyteDirectory, model_version: str, trust_remote_code: bool
) -> FlyteDirectory:
    """Read, split, tokenize and write a dataset.

    Args:
        data: The data section of a run.
        seed: Decides which rows are held out.
        data_version: What the source held when the run was planned.
        model: The base model, for its tokenizer.
        model_version: What the model's source held then.
        trust_remote_code: Run tokenizer code that the model ships.

    Returns:
        A directory with train.parquet, validation.parquet, samples.json and manifest.json.
    """
    key = artifacts.key_of(data.model_dump_json(), str(seed), data_version, model_version, settings.PREPARE_CACHE)
    place = settings.cached_place("dataset", key)
    if artifacts.is_whole(place):
        logger.info("The prepared dataset is already in %s", place)
    else:
        with transient_errors_retried():
            prepare.prepare(
                # A hub dataset at the commit that was planned, whatever its branch holds by now.
                data if is_file_source(data.source) else data.model_copy(update={"revision": data_version}),
                seed=seed,
                model_dir=download(model),
                destination=place,
                trust_remote_code=trust_remote_code,
                token=settings.hub_token(),
            )
    return upload(place)

"""Prepare the tokenized dataset in the blob store once, with a report of what happened to its rows."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.structured import StructuredDataset

from tasks import pages, settings
from tasks.declaring import PREPARE_CACHE, PREPARE_POD, cache, hub_task
from tasks.transfer import download, download_table, transient_errors_retried, upload
from thriftune import artifacts, damage
from thriftune.config import DataConfig
from thriftune.data import prepare, report, sources

logger = logging.getLogger("thriftune.tasks.prepare_dataset")


@task(
    **hub_task(PREPARE_POD),
    # The version stands for the tokenizer; the path of its directory makes no difference.
    cache=cache(PREPARE_CACHE, "tokenizer"),
    enable_deck=True,
    deck_fields=(),
)
def prepare_dataset(
    data: DataConfig,
    seed: int,
    data_version: str,
    tokenizer: FlyteDirectory,
    tokenizer_version: str,
    trust_remote_code: bool,
    table: StructuredDataset | None = None,
) -> FlyteDirectory:
    """Read, select, tokenize, arrange and write a dataset, and show what happened to its rows.

    Args:
        data: The data section of a run.
        seed: Seed that decides which rows are used, and which are held out.
        data_version: Version of the sources when the run was planned.
        tokenizer: The base model's tokenizer.
        tokenizer_version: Its fingerprint, including the chat template.
        trust_remote_code: Whether to run tokenizer code that the model ships.
        table: The rows of source input:table.

    Returns:
        A directory with train.parquet, validation.parquet, rejected.parquet, samples.json, report.html, report.json and
        manifest.json.
    """
    files = download_table(table) if table is not None else []
    key = prepare.fingerprint(data, seed, data_version, tokenizer_version)
    place = settings.cache_path("dataset", artifacts.key_of(key, PREPARE_CACHE))
    if damage.is_reusable(place):
        logger.info("The prepared dataset is already in %s; its report: %s", place, place / report.HTML)
    else:
        with transient_errors_retried():
            prepare.prepare(
                sources.pinned(data, data_version),
                seed=seed,
                tokenizer_dir=download(tokenizer),
                destination=place,
                data_version=data_version,
                trust_remote_code=trust_remote_code,
                token=settings.hub_token(),
                table=files,
                processes=None if settings.is_local() else settings.PLATFORM.prepare_cpu,
            )
    pages.show_deck("Data", (place / report.HTML).read_text(encoding="utf-8"))
    return upload(place)

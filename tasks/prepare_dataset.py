"""Prepare the tokenized dataset in the blob store once, with a report of what happened to its rows."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.structured import StructuredDataset

from tasks import pages, results, settings
from tasks.declaring import PREPARE_CACHE, PREPARE_POD, cache, hub_task
from tasks.transfer import download, download_table, transient_errors_retried, upload
from thriftune import artifacts, damage
from thriftune.config import DataConfig
from thriftune.data import prepare, report, sources

logger = logging.getLogger("thriftune.tasks.prepare_dataset")

# The key of the cache stands for all of these.
_STOOD_FOR = (
    "data", "seed", "data_version", "tokenizer", "tokenizer_version", "trust_remote_code", "record", "table", "labels",
)  # fmt: skip


@task(
    **hub_task(PREPARE_POD),
    cache=cache(PREPARE_CACHE, *_STOOD_FOR),
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
    cache_key: str,
    record: str,
    table: StructuredDataset | None = None,
    labels: list[str] = [],  # noqa: B006 - as Flyte's interface declares a default
) -> FlyteDirectory:
    """Read, select, tokenize, arrange and write a dataset, and show what happened to its rows.

    Args:
        data: The data section of a run.
        seed: Seed that decides which rows are used, and which are held out.
        data_version: Version of the sources when the run was planned.
        tokenizer: The base model's tokenizer.
        tokenizer_version: Its fingerprint, including the chat template, as the preflight found it.
        trust_remote_code: Whether to run tokenizer code that the model ships.
        cache_key: What Flyte's cache knows the result by, and the local one.
        record: URL to write the place of the result to; empty in a local run.
        table: The rows of source input:table.
        labels: Names of the classes, for labelled rows.

    Returns:
        A directory with train.parquet, validation.parquet, rejected.parquet, samples.json, report.html, report.json and
        manifest.json.

    Raises:
        ModelSourceError: The model was changed between the preflight and fetching.
    """
    files = download_table(table) if table is not None else []
    place = settings.cache_path("dataset", artifacts.key_of(cache_key))
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
                tokenizer_version=tokenizer_version,
                trust_remote_code=trust_remote_code,
                token=settings.hub_token(),
                table=files,
                processes=None if settings.is_local() else settings.PLATFORM.prepare_cpu,
                labels=tuple(labels),
            )
    pages.show_deck("Data", (place / report.HTML).read_text(encoding="utf-8"))
    dataset = upload(place)
    results.remember(record, dataset)
    return dataset

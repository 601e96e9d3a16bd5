"""Benchmarks that are made ready, measured in shards and looked for among the rows that train."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pod_check, results, settings
from tasks.benchmark_jobs import Asking, ShardJob
from tasks.declaring import BENCHMARK_CACHE, PREPARE_POD, cache, cpu_task, node_task
from tasks.transfer import download, upload
from thriftune import artifacts, damage
from thriftune.config.benchmarks import HELD_OUT
from thriftune.inference.benchmarks.contamination import contamination
from thriftune.inference.benchmarks.measuring import Shard, measure
from thriftune.inference.benchmarks.results import Results
from thriftune.models.loading import Placement, as_stored

logger = logging.getLogger("thriftune.tasks.benchmark")

_KIND = "benchmark"


@task(**cpu_task(PREPARE_POD), cache=cache(BENCHMARK_CACHE, "prepared", "dataset", "tokenizer"))
def find_contamination(
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    prepared: FlyteDirectory,
    dataset: FlyteDirectory,
    tokenizer: FlyteDirectory,
) -> dict[str, float]:
    """Look for the items of benchmarks in the rows to train on.

    Args:
        cache_key: What Flyte's cache knows the result by.
        prepared: The benchmarks that were made ready.
        dataset: The prepared dataset.
        tokenizer: The tokenizer that it was made with.

    Returns:
        By benchmark, the share of its items that are there.
    """
    found = contamination(download(prepared), download(dataset), download(tokenizer))
    for name, one in found.items():
        if one.share:
            logger.warning("%.1f %% of the items of %s are among the rows to train on", 100 * one.share, name)
    return {name: one.share for name, one in found.items()}


@task(**node_task(), cache=cache(BENCHMARK_CACHE, "job", "asking", "prepared", "model", "adapters", "dataset"))
def benchmark_shard(
    cache_key: str,
    job: ShardJob,
    asking: Asking,
    prepared: FlyteDirectory,
    model: FlyteDirectory,
    adapters: dict[str, FlyteDirectory],
    dataset: FlyteDirectory | None,
) -> FlyteDirectory:
    """Measure a part of a benchmark with one load of a model: the model itself, or each of several adapters on it.

    Args:
        cache_key: What Flyte's cache knows the result by, and the local one.
        job: Which part, and which adapters.
        asking: How benchmarks are asked.
        prepared: The benchmarks that were made ready.
        model: The model.
        adapters: Adapters on it, by what each is known by.
        dataset: The prepared dataset, for its held-out rows; None where these are not measured.

    Returns:
        A directory with the results of each adapter in a directory of its own, or of the model itself in `base`.
    """
    pod_check.require_planned(asking.node)
    place = settings.cache_path(_KIND, artifacts.key_of(cache_key))
    if damage.is_reusable(place):
        logger.info("%s is already in %s", job.title, place)
    else:
        found = _measured(job, asking, prepared, model, {name: adapters[name] for name in job.adapters}, dataset)
        with artifacts.writing(place, "writing the results of a benchmark") as directory:
            for name, measured in found.items():
                (directory / name).mkdir()
                measured.write(directory / name)
            artifacts.write_manifest(directory, _KIND, {"job": job.title})
    made = upload(place)
    for record in job.records:
        results.remember(record, made)
    return made


def _measured(
    job: ShardJob,
    asking: Asking,
    prepared: FlyteDirectory,
    model: FlyteDirectory,
    adapters: dict[str, FlyteDirectory],
    dataset: FlyteDirectory | None,
) -> dict[str, Results]:
    logger.info("Benchmark %s", job.title)
    node, model_dir = asking.node, download(model)
    placement = as_stored(Placement(node.hardware, node.precision, asking.four_bit), model_dir)
    rows = download(dataset) if dataset is not None and job.task == HELD_OUT else None
    brought = {name: download(adapter) for name, adapter in adapters.items()}
    shard = Shard(job.task, job.part, job.parts)
    return measure(download(prepared), shard, model_dir, placement, brought, job.settings(asking.settings), rows)

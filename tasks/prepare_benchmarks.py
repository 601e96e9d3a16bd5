"""The items of benchmarks, read once where the hub is, so that no pod with a GPU needs it."""

import logging

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import results, settings
from tasks.declaring import BENCHMARK_CACHE, PREPARE_POD, cache, hub_task
from tasks.transfer import transient_errors_retried, upload
from thriftune import artifacts, damage
from thriftune.config import BenchmarksConfig
from thriftune.inference.benchmarks.preparing import prepare

logger = logging.getLogger("thriftune.tasks.prepare_benchmarks")


@task(**hub_task(PREPARE_POD), cache=cache(BENCHMARK_CACHE, "section", "record", "trust_remote_code"))
def prepare_benchmarks(
    section: BenchmarksConfig, cache_key: str, record: str, trust_remote_code: bool
) -> FlyteDirectory:
    """Read and check the items of all benchmarks, with the hub where they need it, so that no pod with a GPU does.

    Args:
        section: The benchmarks.
        cache_key: What Flyte's cache knows the result by, and the local one.
        record: URL to write the place of the result to; empty in a local run.
        trust_remote_code: Whether to run code that tasks of a person's own name.

    Returns:
        A directory with all that a shard needs.
    """
    place = settings.cache_path("benchmarks", artifacts.key_of(cache_key))
    if damage.is_reusable(place):
        logger.info("The benchmarks are already in %s", place)
    else:
        with transient_errors_retried():
            prepare(section, place, settings.hub_token(), trust_remote_code=trust_remote_code)
    prepared = upload(place)
    results.remember(record, prepared)
    return prepared

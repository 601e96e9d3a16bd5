"""Benchmarks without training: of a model, or of a base and adapters on it, side by side.

pyflyte run workflows/benchmark.py benchmark --config configs/benchmark-general.yaml
"""

import json

from flytekit import dynamic, workflow
from flytekit.types.directory import FlyteDirectory

from tasks.check_benchmarks import CheckedRun, check_benchmarks
from tasks.compare_benchmarks import BenchmarkResult, summarize_benchmarks
from tasks.declaring import dynamic_task
from tasks.fetch_model import fetch_model
from tasks.provisioning import on_cpu_node
from tasks.results import step_of_model
from thriftune import artifacts
from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.planning import pod_requests
from thriftune.redaction import redacted, unsigned
from workflows.benchmarking import Subject, make_ready


@dynamic(**dynamic_task())
def measure_models(config: BenchmarkRun, checked: CheckedRun) -> BenchmarkResult:
    """Fetch the model, measure it and the adapters on it in shards, and put all of it together."""
    base, step = step_of_model(config.model, checked.model_version)
    fetched = fetch_model(model=config.model, version=checked.model_version, **step.inputs)
    request = pod_requests.fetching_model(config.model.source, checked.parameters)
    on_cpu_node(fetched.model, checked.asking.node, request)
    benchmarking = make_ready(config.benchmarks, checked.asking, json.loads(checked.benchmarks_version))
    keys = {name: _key_of(config.adapters[name], version) for name, version in checked.adapter_versions.items()}
    repeats = benchmarking.repeats if keys else 1
    measured = benchmarking.measure(Subject(base, fetched.model, times=repeats))
    adapters = {key: FlyteDirectory(config.adapters[name]) for name, key in keys.items()}
    tuned = benchmarking.measure(Subject(base, fetched.model, adapters, from_index=True)) if adapters else None
    found = {"tuned": tuned.made if tuned else [], "served": tuned.served if tuned else []}
    summary = summarize_benchmarks(config=config, repeats=repeats, base=measured.made, adapters=keys, **found)
    return BenchmarkResult(summary.items, summary.scores)


def _key_of(place: str, version: str) -> str:
    """What an adapter is known by: its place too, as two of an image may have files of equal sizes and times."""
    return artifacts.key_of("adapter", version, redacted(unsigned(place)))


@workflow
def benchmark(config: BenchmarkRun) -> BenchmarkResult:
    """Measure a model on benchmarks, or a base and adapters on it.

    Args:
        config: What to measure, and on what: a YAML file like configs/benchmark-general.yaml.

    Returns:
        The results item by item as Parquet, a folder for each model; and the scores, with each adapter compared with
        the base.
    """
    result: BenchmarkResult = measure_models(config=config, checked=check_benchmarks(config=config))
    return BenchmarkResult(result.items, result.scores)

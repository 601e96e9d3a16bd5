"""The pods of benchmarks: which part of which benchmark each measures, and what its results are known by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks import results
from tasks.declaring import BENCHMARK_CACHE
from thriftune import artifacts
from thriftune.checkpoints import known_by
from thriftune.config import BenchmarksConfig
from thriftune.config.benchmarks import HELD_OUT, BenchmarkTask
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.inference.benchmarks.preparing import kind_of
from thriftune.models.quantization import FourBit
from thriftune.planned_node import EvaluationNode


@dataclass(frozen=True)
class Asking:
    """How benchmarks are asked: the same in every pod.

    Attributes:
        settings: How a model is asked.
        node: What each pod runs on.
        four_bit: How models are held in 4 bits; None if they are not.
    """

    settings: Settings
    node: EvaluationNode
    four_bit: FourBit | None


@dataclass(frozen=True)
class ShardJob:
    """What one pod does.

    Attributes:
        task: The benchmark.
        part: Number of the part, from 0.
        parts: Number of parts of the benchmark.
        repeat: How often the same was measured before.
        adapters: The adapters to measure, by what each is known by; none to measure the model itself.
        records: URLs of the records to write; empty in a local run.
    """

    task: str
    part: int
    parts: int
    repeat: int
    adapters: list[str]
    records: list[str]

    def settings(self, asked: Settings) -> Settings:
        """How this pod asks.

        What is measured again to know the noise has other draws, and half as many rows at a time: sums depend on that.

        Args:
            asked: How the benchmarks are asked.
        """
        return replace(asked, seed=asked.seed + self.repeat, batch=max(1, asked.batch >> self.repeat))

    @property
    def title(self) -> str:
        """The job in a few words."""
        again = f", measured again ({self.repeat})" if self.repeat else ""
        return f"{self.task}, part {self.part + 1} of {self.parts}{again}"


@dataclass(frozen=True)
class Jobs:
    """The pods that measure one model, or adapters on it.

    Attributes:
        keys: What Flyte's cache knows the result of each by.
        jobs: What each does.
        served: URLs of results of adapters that need no pod, as the index has them.
    """

    keys: list[str]
    jobs: list[ShardJob]
    served: list[str]


def jobs_of(
    section: BenchmarksConfig,
    asking: Asking,
    versions: Mapping[str, str],
    model: str,
    adapters: Sequence[str] = (),
    times: int = 1,
    *,
    from_index: bool = False,
) -> Jobs:
    """The pods that measure a model, or adapters on it: all of these with one load of the model.

    Args:
        section: The benchmarks.
        asking: How they are asked.
        versions: Their versions by name.
        model: What the model is known by.
        adapters: What each adapter on it is known by; empty to measure the model itself.
        times: How often to measure.
        from_index: Whether what the index has of an adapter is not measured again, although Flyte's cache may know it
            only together with other adapters.

    Raises:
        ResultError: The index may not be read or written.
    """
    found = Jobs([], [], [])
    for task, job in _all(section, times):
        steps = {one: _step(task, job, asking, versions, model, one) for one in adapters or ("",)}
        wanted = {one: step for one, step in steps.items() if not (from_index and one and step.is_made)}
        found.served.extend(url for one, step in steps.items() if one not in wanted for url in step.results)
        if wanted:
            found.keys.append(artifacts.key_of(*(step.cache_key for step in wanted.values())))
            records = [step.record for step in wanted.values() if step.record]
            found.jobs.append(replace(job, adapters=[one for one in wanted if one], records=records))
    # One pod measures several adapters, and all of their records lead to its directory.
    return replace(found, served=list(dict.fromkeys(found.served)))


def versions_with_rows(versions: Mapping[str, str], rows: str) -> dict[str, str]:
    """Versions of benchmarks, of which that of the held-out rows is that of the prepared dataset.

    Args:
        versions: By name, as the preflight found them.
        rows: Fingerprint of the prepared rows.
    """
    own = {HELD_OUT: artifacts.key_of(versions[HELD_OUT], rows)} if HELD_OUT in versions else {}
    return {**versions, **own}


def _all(section: BenchmarksConfig, times: int) -> Iterator[tuple[BenchmarkTask, ShardJob]]:
    for repeat in range(times):
        for task in section.tasks:
            for part in range(section.shards):
                yield task, ShardJob(task.name, part, section.shards, repeat, [], [])


def _step(
    task: BenchmarkTask, job: ShardJob, asking: Asking, versions: Mapping[str, str], model: str, adapter: str
) -> results.Step:
    settings, node = asking.settings, asking.node
    is_drawn = settings.temperature > 0 or kind_of(task) == "harness"  # whose tasks may draw
    asked = replace(settings.of(task.name), batch=0, seed=settings.seed if is_drawn else 0)
    key = known_by.benchmarking(
        node,
        model=model,
        adapter=adapter,
        held=[asking.four_bit.double_quantization] if asking.four_bit else [],
        shard=[task.name, versions[task.name], repr(asked), job.part, job.parts, job.repeat],
    )
    return results.step("benchmark", BENCHMARK_CACHE, key, f"the result of {job.title}")

"""The nodes of benchmarks: their items made ready once, and each shard of them measured in a pod of its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks import results, settings
from tasks.benchmark import benchmark_shard, find_contamination
from tasks.benchmark_jobs import Asking, jobs_of, versions_with_rows
from tasks.compare_benchmarks import compare_benchmarks
from tasks.declaring import BENCHMARK_CACHE
from tasks.mapping import mapped
from tasks.prepare_benchmarks import prepare_benchmarks
from tasks.provisioning import on_planned_node
from tasks.results import Steps, Versions
from thriftune import artifacts
from thriftune.checkpoints import known_by
from thriftune.config import BenchmarksConfig, RunConfig
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.planned_node import EvaluationNode
from thriftune.planning.evaluating import held_in_four_bit
from thriftune.training_plan import TrainingPlan
from workflows.measuring import Made
from workflows.stages import Ready


class Measured(NamedTuple):
    """The results of shards: promises of those that run, and directories of those that the index has."""

    made: Any
    served: list[FlyteDirectory]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        key: What the model is known by.
        model: A promise of it.
        adapters: Promises of adapters on it, by what each is known by; none to measure the model itself.
        times: How often to measure it.
        from_index: Whether results of adapters that the index has are taken from there.
    """

    key: str
    model: Any
    adapters: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    from_index: bool = False


@dataclass(frozen=True)
class Benchmarking:
    """Benchmarks that are made ready.

    Attributes:
        section: The benchmarks.
        asking: How they are asked.
        versions: Their versions by name.
        prepared: A promise of their items.
        dataset: A promise of the prepared dataset; None where no held-out rows are measured.
    """

    section: BenchmarksConfig
    asking: Asking
    versions: Mapping[str, str]
    prepared: Any
    dataset: Any = None

    @property
    def repeats(self) -> int:
        """How often the base is measured."""
        return self.section.times_measured(on_gpu=self.asking.node.hardware.is_gpu)

    def measure(self, subject: Subject) -> Measured:
        """Add the pods that measure a model, or adapters on it. Called inside `@dynamic`.

        Args:
            subject: What to measure.
        """
        adapters, asking = dict(subject.adapters), self.asking
        model, times, reuse = subject.key, subject.times, subject.from_index
        found = jobs_of(self.section, asking, self.versions, model, list(adapters), times, from_index=reuse)
        served = [FlyteDirectory(url) for url in found.served]
        if not found.jobs:
            return Measured([], served)
        inputs = {"asking": asking, "prepared": self.prepared, "dataset": self.dataset}
        shards = mapped(benchmark_shard, self.section.parallel, model=subject.model, adapters=adapters, **inputs)
        return Measured(on_planned_node(shards(cache_key=found.keys, job=found.jobs), asking.node), served)


def make_ready(
    section: BenchmarksConfig, asking: Asking, versions: Mapping[str, str], dataset: Any = None
) -> Benchmarking:
    """Add the node that reads and checks the items of benchmarks. Called inside `@dynamic`.

    Args:
        section: The benchmarks.
        asking: How they are asked.
        versions: Their versions by name.
        dataset: A promise of the prepared dataset; None where no held-out rows are measured.
    """
    key = artifacts.key_of(section.model_dump_json(), json.dumps(versions, sort_keys=True))
    step = results.step("benchmarks", BENCHMARK_CACHE, key, "the prepared benchmarks")
    trust = asking.settings.trust_remote_code
    prepared = prepare_benchmarks(section=section, trust_remote_code=trust, **step.inputs)
    return Benchmarking(section, asking, versions, prepared, dataset)


def asking_of(config: RunConfig, section: BenchmarksConfig, node: EvaluationNode) -> Asking:
    """How the benchmarks of a run are asked.

    Args:
        config: The run.
        section: Its benchmarks.
        node: What each shard of them runs on.
    """
    asked = Settings(
        batch=section.batch,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        seed=config.seed,
        style=config.data.prompt_format,
        trust_remote_code=config.model.trust_remote_code,
        max_rows=config.evaluation.max_rows,
    )
    return Asking(asked, node, held_in_four_bit(config))


class BeforeTraining(NamedTuple):
    """Benchmarks of a run, promises of what its base scores on them, and of the share that is in its rows."""

    benchmarking: Benchmarking
    base: Any
    contamination: Any


class Compared(NamedTuple):
    """Promises of what came of a run's benchmarks; None where it has none."""

    comparison: Any = None
    verdict: Any = None
    items: Any = None
    contamination: Any = None


def measure_base(
    config: RunConfig, plan: TrainingPlan, steps: Steps, versions: Versions, ready: Ready
) -> BeforeTraining | None:
    """Add the nodes that measure a run's base, beside its training. Called inside `@dynamic`.

    Args:
        config: The run.
        plan: Its plan.
        steps: Its cached steps.
        versions: Present versions of what it reads.
        ready: Its model, tokenizer and dataset.

    Returns:
        None if the run has no benchmarks.
    """
    section, node = config.benchmarks, plan.benchmarks
    if section is None or node is None:
        return None
    asking = asking_of(config, section, node)
    own = versions_with_rows(versions.benchmarks_by_name, steps.rows)
    benchmarking = make_ready(section, asking, own, ready.dataset if section.has_held_out else None)
    base = Subject(known_by.model(config.model, versions.model), ready.model, times=benchmarking.repeats)
    key = artifacts.key_of(json.dumps(own, sort_keys=True), steps.rows)
    rows = {"dataset": ready.dataset, "tokenizer": ready.tokenizer}
    contamination = find_contamination(cache_key=key, prepared=benchmarking.prepared, **rows)
    return BeforeTraining(benchmarking, benchmarking.measure(base).made, contamination)


def compare_with_base(
    config: RunConfig, before: BeforeTraining | None, steps: Steps, made: Made, training: Any
) -> Compared:
    """Add the nodes that measure a run's result, and compare it with its base. Called inside `@dynamic`.

    Args:
        config: The run.
        before: Its benchmarks and base; None if it has none.
        steps: Its cached steps.
        made: Its base model, result and adapter.
        training: What was measured while it trained.
    """
    if before is None:
        return Compared()
    trained, adapter = _of_this_run(steps.training.cache_key), ""
    if made.adapter is not None and steps.merged is None:
        adapter = artifacts.key_of(trained)
        subject = Subject(steps.model.cache_key, made.model, {adapter: made.adapter})
    else:
        merged = _of_this_run(steps.merged.cache_key) if steps.merged else trained
        subject = Subject(merged, made.result)
    tuned, repeats = before.benchmarking.measure(subject), before.benchmarking.repeats
    found = {"base": before.base, "tuned": tuned.made, "adapter": adapter}
    compared = compare_benchmarks(config=config, repeats=repeats, training=training, **found)
    return Compared(compared.comparison, compared.verdict, compared.items, before.contamination)


def _of_this_run(key: str) -> str:
    """What a result is known by. A local run makes it anew each time, so that it is no other run's."""
    return artifacts.key_of(key, settings.run_stamp()) if settings.is_local() else key

"""The nodes of the trials of a sweep: those that train a round, those that measure it, and those at the end."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flytekit import dynamic
from flytekit.types.directory import FlyteDirectory

from tasks import settings, trial_results
from tasks.benchmark_jobs import versions_with_rows
from tasks.declaring import dynamic_task
from tasks.mapping import mapped
from tasks.merge_adapter import merge_adapter
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.results import Steps, Versions, steps_of
from tasks.summarize_sweep import join_round, score_round, summarize_sweep
from tasks.trials import train_pack, train_trial
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.config.benchmark_run import BASE
from thriftune.config.choices import METHODS
from thriftune.config.sweep import SweepRun
from thriftune.planned_node import EvaluationNode
from thriftune.planning import packing, pod_requests
from thriftune.planning.evaluating import held_in_four_bit
from thriftune.sweeps.choosing import best_of
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import Pack, TrialJob, TrialKey, on_fewer_nodes
from thriftune.sweeps.rounds import PlannedRound, PlannedTrial, SoFar
from thriftune.sweeps.table import SweepTable
from workflows.benchmarking import Benchmarking, Subject, asking_of, make_ready
from workflows.stages import Ready, fetch, prepare

# A pod that is lost for good must not end a sweep: what is known of the others is compared.
_FEW = 0.01
_TRIAL = "trial"


@dataclass(frozen=True)
class _Known:
    """A trial, and what its steps are known by."""

    trial: PlannedTrial
    config: RunConfig
    versions: Versions
    steps: Steps

    @classmethod
    def of(cls, trial: PlannedTrial) -> "_Known":
        """Look a trial up in the index."""
        config = trial.config
        versions = Versions(
            trial.model_version,
            trial.tokenizer_version,
            trial.data_version,
            trial.start_version,
            trial.benchmarks_version,
        )
        return cls(trial, config, versions, steps_of(config, trial.plan, versions, _TRIAL))

    @property
    def keys(self) -> tuple[str, str]:
        """What its model and its dataset are known by."""
        return self.steps.model.cache_key, self.steps.dataset.cache_key

    @property
    def job(self) -> TrialJob:
        """What a pod has to know of it."""
        training = self.steps.training
        trial, keys = self.trial, self.keys
        return TrialJob(trial.number, trial.run, trial.plan, training.cache_key, training.record, *keys)

    @property
    def key(self) -> TrialKey:
        """Where what it makes is found."""
        training = self.steps.training
        return TrialKey(self.trial.number, training.cache_key, training.record)


@dataclass(frozen=True)
class _Sources:
    """The nodes that fetch models and prepare data, one for each that differs. Used inside `@dynamic`."""

    models: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, Any] = field(default_factory=dict)

    def of(self, known: _Known) -> Ready:
        """The promises of a trial's model, dataset and tokenizer."""
        fetched, dataset = self.fetched(known), known.keys[1]
        if dataset not in self.datasets:
            self.datasets[dataset] = prepare(known.config, known.versions, known.steps, fetched.tokenizer)
        return Ready(fetched.model, self.datasets[dataset], fetched.tokenizer)

    def fetched(self, known: _Known) -> Any:
        """The promises of a trial's model and tokenizer."""
        model = known.keys[0]
        if model not in self.models:
            self.models[model] = fetch(known.config, known.trial.plan, known.versions, known.steps)
        return self.models[model]


@dynamic(**dynamic_task())
def train_round(config: SweepRun, planned: PlannedRound, before: SoFar) -> SoFar:
    """Fetch and prepare what is equal once, and train the trials that no earlier run has: packs, and single ones."""
    halving = config.sweep.halving_json
    served: list[Outcome] = []
    keys: list[TrialKey] = []
    missing: dict[int, _Known] = {}
    for known in map(_Known.of, planned.trials):
        key = known.key
        found = trial_results.found(key.number, key.cache_key, key.record, halving)
        if found is not None:
            served.append(found)
            continue
        if key.cache_key not in {other.cache_key for other in keys}:  # else two processes would write to one place
            missing[key.number] = known
        keys.append(key)
    sources = _Sources()
    ready = {number: sources.of(known) for number, known in missing.items()}
    earlier = [*before.outcomes, *served] if halving else []  # nobody else asks, and they hold whole curves
    packed = list(_packed(planned, missing, ready, halving, earlier))
    alone = list(_alone(config, planned, missing, ready))
    made = {"served": served, "keys": keys, "packed": packed, "alone": alone}
    joined: SoFar = join_round(config=config, planned=planned, before=before, **made)
    return joined


def _packed(
    planned: PlannedRound,
    missing: Mapping[int, _Known],
    ready: Mapping[int, Ready],
    halving: str,
    earlier: list[Outcome],
) -> Iterator[Any]:
    """Add the pods that train several trials each: those with equal nodes are one map task, a single pod is none."""
    groups: list[tuple[EvaluationNode, list[Pack]]] = []
    planned_for = [len(pack.numbers) for pack in planned.packs]
    for index, pack in enumerate(planned.packs):
        jobs = [missing[number].job for number in pack.numbers if number in missing]
        if not jobs:
            continue
        same = next((packs for node, packs in groups if node == pack.node), None)
        if same is None:
            groups.append((pack.node, same := []))
        same.append(Pack(index, pack.slots, jobs))
    for node, left in groups:
        is_whole = all(len(pack.jobs) == planned_for[pack.number] for pack in left)
        packs = left if is_whole else on_fewer_nodes(left, max(planned_for[pack.number] for pack in left))
        numbers = [job.number for pack in packs for job in pack.jobs]
        models = {missing[number].keys[0]: ready[number].model for number in numbers}
        datasets = {missing[number].keys[1]: ready[number].dataset for number in numbers}
        given = {"halving": halving, "earlier": earlier, "models": models, "datasets": datasets}
        keys = [artifacts.key_of(*(job.cache_key for job in pack.jobs)) for pack in packs]
        if len(planned.packs) == 1 and not planned.alone:  # map tasks show no page while they run
            yield [on_planned_node(train_pack(cache_key=keys[0], pack=packs[0], **given), node)]
        else:
            trained = mapped(train_pack, None, min_success_ratio=_FEW, **given)
            yield on_planned_node(trained(cache_key=keys, pack=packs), node)


def _alone(
    config: SweepRun, planned: PlannedRound, missing: Mapping[int, _Known], ready: Mapping[int, Ready]
) -> Iterator[Any]:
    """Add the pods that train one trial each; those with equal nodes, models and data are one map task."""
    groups: dict[str, list[_Known]] = {}
    for trial in planned.alone:
        if trial.number in missing:
            known, plan = missing[trial.number], trial.plan
            same = json.dumps([plan.instance, repr(plan.request), plan.strategy, plan.devices_per_node, *known.keys])
            groups.setdefault(same, []).append(known)
    for group in groups.values():
        there = ready[group[0].trial.number]
        given = {"model": there.model, "dataset": there.dataset}
        share = packing.share_of(config.sweep.parallel, len(group), len(planned.trials))
        trained = mapped(train_trial, share, min_success_ratio=_FEW, **given)
        node = trained(
            config=[known.config for known in group],
            plan=[known.trial.plan for known in group],
            cache_key=[known.steps.training.cache_key for known in group],
            record=[known.steps.training.record for known in group],
            number=[known.trial.number for known in group],
        )
        yield on_planned_node(node, group[0].trial.plan, as_job=True)


@dynamic(**dynamic_task())
def measure_round(config: SweepRun, planned: PlannedRound, found: SoFar) -> SoFar:
    """Measure the trials of a round on the benchmarks: all adapters of a base with one load of it."""
    numbers = {trial.number for trial in planned.trials}
    own = [one for one in found.tried if one.trial.number in numbers and one.outcome.status == "trained"]
    groups: dict[str, list[tuple[_Known, str]]] = {}
    for one in own:
        known = _Known.of(one.trial)
        trains_weights = METHODS[known.config.method].trains_weights
        same = repr((*known.keys, trains_weights, held_in_four_bit(known.config)))
        groups.setdefault(same, []).append((known, one.outcome.model))
    sources, measured, folders = _Sources(), [], []
    for group in groups.values():
        benchmarking = _benchmarking(group[0][0], sources)
        for subject, names in _subjects(group, sources):
            measured.append(benchmarking.measure(subject))
            folders.append(names)
    scored: SoFar = score_round(
        config=config,
        found=found,
        made=[one.made for one in measured],
        served=[one.served for one in measured],
        folders=folders,
    )
    return scored


def _benchmarking(known: _Known, sources: _Sources) -> Benchmarking:
    section, node = known.config.benchmarks, known.trial.plan.benchmarks
    assert section is not None
    assert node is not None
    versions = versions_with_rows(known.versions.benchmarks_by_name, known.steps.rows)
    dataset = sources.of(known).dataset if section.has_held_out else None
    return make_ready(section, asking_of(known.config, section, node), versions, dataset)


def _subjects(group: list[tuple[_Known, str]], sources: _Sources) -> Iterator[tuple[Subject, dict[str, list[int]]]]:
    """What is measured together, and by the folder that has its results the numbers of the trials that made it."""
    first = group[0][0]
    places: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for known, model in group:
        key = artifacts.key_of(known.steps.training.cache_key)
        places.setdefault(key, model)
        numbers.setdefault(key, []).append(known.trial.number)
    if METHODS[first.config.method].trains_weights:
        for key, model in places.items():
            yield Subject(key, _directory(model)), {BASE: numbers[key]}
        return
    adapters = {key: _directory(model) for key, model in places.items()}
    subject = Subject(first.steps.model.cache_key, sources.fetched(first).model, adapters, from_index=True)
    yield subject, numbers


def _directory(place: str) -> FlyteDirectory:
    """A finished directory, which a local run does not copy."""
    return FlyteDirectory(place, remote_directory=False) if settings.is_local() else FlyteDirectory(place)


class Concluded(NamedTuple):
    """The best model, and the table of all trials."""

    model: FlyteDirectory
    trials: SweepTable


@dynamic(**dynamic_task())
def conclude(config: SweepRun, found: SoFar) -> Concluded:
    """Show what came of the trials, and merge the best where the run merges."""
    summary = summarize_sweep(config=config, found=found)
    best = best_of(found.outcomes, found.scores, is_higher_better=found.is_higher_better)
    trial = next((one.trial for one in found.tried if one.trial.number == best), None)
    if trial is None:  # the summary says that there is none
        return Concluded(summary.best, summary.table)
    run = config.as_run
    lora = trial.config.lora_or_default.model_copy(update={"merge": run.lora_or_default.merge})
    merging = trial.config.model_copy(update={"lora": lora, "name": run.name})
    if not merging.merges:  # by the method of the trial, which may be another one than the run's
        return Concluded(summary.best, summary.table)
    known = _Known.of(trial)
    steps = steps_of(merging, trial.plan, known.versions, _TRIAL)
    assert steps.merged is not None
    ready = _Sources().of(known)
    merged = merge_adapter(
        config=merging, model=ready.model, adapter=summary.best, dataset=ready.dataset, **steps.merged.inputs
    )
    on_cpu_node(merged.model, trial.plan, pod_requests.merging(merging, trial.plan))
    return Concluded(merged.model, summary.table)

"""Training tasks: one body, declared once per number of nodes, and once for a single process."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, interruption, ledger, live, pod_check, results, settings
from tasks.declaring import TRAIN_CACHE, cache, declared_as, training_node_task, wandb_secrets
from tasks.elastic import elastic, in_worker
from tasks.failures import explained
from tasks.transfer import download, download_once_per_node, transient_errors_retried, upload
from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.methods import METHODS
from thriftune.models import fetching
from thriftune.models.adapter_weights import RESUME_FROM
from thriftune.strategies import STRATEGIES
from thriftune.training.fit import Inputs, fit
from thriftune.training.result import Asked, TrainingResult
from thriftune.training_plan import TrainingPlan

# The key of the cache stands for all of these.
_STOOD_FOR = ("config", "plan", "record", "model", "dataset")


class Trained(NamedTuple):
    """A trained model or adapter, and what was measured while training it."""

    model: FlyteDirectory
    training: TrainingResult


def _train(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,
    record: str,
    model: FlyteDirectory,
    dataset: FlyteDirectory,
) -> Trained:
    """Train by the method of the run, under the strategy of its plan. Runs in each process of the training.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What Flyte's cache knows the result by, and what its checkpoints are found by: another price or name,
            for example, does not change it.
        record: URL to write the place of the result to; empty in a local run.
        model: The base model.
        dataset: The prepared dataset.

    Returns:
        The directory of a model or an adapter, and what was measured.
    """
    if STRATEGIES[plan.strategy].facts.is_distributed:
        with explained("a worker of the training"), transient_errors_retried():
            lines = settings.lines_path(config.name)
            return in_worker(lambda: _trained(config, plan, cache_key, record, model, dataset, lines))
    with checkpoints.attempt(cache_key):
        pod_check.require_planned(plan)  # the agent has looked at the pod of workers
        with (
            transient_errors_retried(),
            interruption.training(config, in_workers=False),
            live.watching(config, plan, cache_key) as lines,
        ):
            return _trained(config, plan, cache_key, record, model, dataset, lines)


def _trained(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,
    record: str,
    model: FlyteDirectory,
    dataset: FlyteDirectory,
    lines: Path,
) -> Trained:
    strategy = STRATEGIES[plan.strategy]
    rank = strategy.join(plan)
    if rank.is_main:
        live.say_joined(lines)
    there = checkpoints.checkpoint_location(config.name, cache_key)
    began, start = time.monotonic(), start_of(config)
    model_dir, dataset_dir = download_once_per_node(model, dataset)
    place = settings.result_path(config.name, METHODS[plan.method].facts.result)
    own = download(start) if start else None
    fetching_seconds = time.monotonic() - began
    inputs = Inputs(config, plan, model_dir, dataset_dir, own, there, fetching_seconds, lines)
    result = fit(inputs, place)
    output = upload(place) if rank.is_main else FlyteDirectory(str(place))
    if rank.is_main:  # after the upload: the model must not be lost if the page fails
        result = live.with_hours(plan, lines, result)
        results.remember(record, output, facts=Asked.of(config).facts)
        checkpoints.mark_done(cache_key)
        ledger.remember(config, plan, model_dir, result, fetching_seconds)
        live.finish(config, plan, lines, result)
    distributed.leave()
    return Trained(model=output, training=result)


def start_of(config: RunConfig) -> FlyteDirectory | None:
    """The adapter to continue; None if a run has none.

    Args:
        config: The run.
    """
    start = config.lora_or_default.resume_from
    return FlyteDirectory(start) if start else None


def start_version(config: RunConfig) -> str:
    """The present version of the adapter to continue, which its URL does not show; empty if a run has none.

    Args:
        config: The run.
    """
    start = config.lora_or_default.resume_from
    if not start:
        return ""
    with transient_errors_retried():
        return fetching.version(start, field=RESUME_FROM)


def _declare(name: str, task_config: Any = None) -> Any:
    options = training_node_task(task_config, *wandb_secrets())
    return declared_as(name, _train, **options, cache=cache(TRAIN_CACHE, *_STOOD_FOR))


train_1 = _declare("train_1", elastic(1))
train_2 = _declare("train_2", elastic(2))
train_3 = _declare("train_3", elastic(3))
train_4 = _declare("train_4", elastic(4))
train_6 = _declare("train_6", elastic(6))
train_8 = _declare("train_8", elastic(8))
train_in_one_process = _declare("train_in_one_process")

_BY_NODES = {nodes: globals()[f"train_{nodes}"] for nodes in NODE_COUNTS}


def training_task(plan: TrainingPlan) -> Any:
    """The training task for a plan.

    Args:
        plan: The plan.
    """
    return _BY_NODES[plan.nodes] if STRATEGIES[plan.strategy].facts.is_distributed else train_in_one_process

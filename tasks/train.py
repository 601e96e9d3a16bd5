"""Training tasks: one body, declared once per number of nodes, and once for a single process."""

from collections.abc import Callable
from typing import Any

from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, interruption, live, pod_check, settings
from tasks.declaring import TRAIN_CACHE, cache, declared_as, training_node_task, wandb_secrets
from tasks.elastic import elastic, in_worker
from tasks.failures import explained
from tasks.training_body import Keeps, Trained, Work, train
from tasks.transfer import transient_errors_retried
from thriftune.config import RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

# The key of the cache stands for all of these.
_STOOD_FOR = ("config", "plan", "record", "model", "dataset")


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
    return train_here(config, plan, cache_key, record, model, dataset)


def train_here(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,
    record: str,
    model: FlyteDirectory,
    dataset: FlyteDirectory,
    keeps: Callable[[Work], Keeps] = Keeps.of_run,
) -> Trained:
    """Train in a process of a task: a worker of its agent where the strategy is distributed, else the task's own.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What the training is known by.
        record: URL to write the place of the result to; empty in a local run.
        model: The base model.
        dataset: The prepared dataset.
        keeps: Says where it keeps what it makes.
    """
    if STRATEGIES[plan.strategy].facts.is_distributed:
        with explained("a worker of the training"), transient_errors_retried():
            lines = settings.lines_path(config.name)
            return in_worker(lambda: train(Work(config, plan, cache_key, record, model, dataset, lines), keeps))
    with checkpoints.attempt(cache_key):
        pod_check.require_planned(plan)  # the agent has looked at the pod of workers
        with (
            transient_errors_retried(),
            interruption.training(config, in_workers=False),
            live.watching(config, plan, cache_key) as lines,
        ):
            return train(Work(config, plan, cache_key, record, model, dataset, lines), keeps)


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

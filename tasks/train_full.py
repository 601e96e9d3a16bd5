"""Full fine-tuning: one task per number of nodes, all with the same body."""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pages, settings
from tasks.checkpoints import checkpoint_place
from tasks.declaring import TRAIN_CACHE, cache, node_task, wandb_secrets
from tasks.elastic import elastic, in_worker
from tasks.failures import explained
from tasks.transfer import download_once_per_node, transient_errors_retried, upload
from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.training import full
from thriftune.training.trainer import TrainingResult
from thriftune.training_plan import TrainingPlan


class Trained(NamedTuple):
    """A trained model or adapter, and what was measured while training it."""

    model: FlyteDirectory
    training: TrainingResult


def _train_full(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    model: FlyteDirectory,
    dataset: FlyteDirectory,
) -> Trained:
    """Fine-tune every weight under DeepSpeed ZeRO. Runs in each worker process.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What Flyte's cache knows the plan by, as another price makes no other result.
        model: The base model.
        dataset: The prepared dataset.

    Returns:
        An ordinary model directory, and what was measured.
    """
    with explained("a worker of the training"), transient_errors_retried():
        return in_worker(lambda: _train(config, plan, model, dataset))


def _train(config: RunConfig, plan: TrainingPlan, model: FlyteDirectory, dataset: FlyteDirectory) -> Trained:
    rank = distributed.join(plan.hardware.backend)
    checkpoints = checkpoint_place(config.name)
    model_dir, dataset_dir = download_once_per_node(model, dataset)
    place = settings.result_place(config.name, "model")
    result = full.train(config, plan, model_dir, dataset_dir, place, checkpoints)
    output = upload(place) if rank.is_main else FlyteDirectory(str(place))
    if rank.is_main:  # after the upload: a page that fails must not cost the model
        pages.show_training(config.name, result)
    distributed.leave()
    return Trained(model=output, training=result)


def _declare(nodes: int) -> Any:
    """A task on a fixed number of nodes. Flyte knows a task by its function's name, so the function is renamed."""
    options = node_task(elastic(nodes), *wandb_secrets())
    decorate: Callable[..., Any] = task(**options, cache=cache(TRAIN_CACHE, "plan"), enable_deck=True, deck_fields=())
    name = f"train_full_{nodes}"
    body = types.FunctionType(_train_full.__code__, _train_full.__globals__, name)
    body.__annotations__, body.__doc__, body.__qualname__ = _train_full.__annotations__, _train_full.__doc__, name
    return decorate(body)


train_full_1 = _declare(1)
train_full_2 = _declare(2)
train_full_3 = _declare(3)
train_full_4 = _declare(4)
train_full_6 = _declare(6)
train_full_8 = _declare(8)

TRAIN_FULL = {nodes: globals()[f"train_full_{nodes}"] for nodes in NODE_COUNTS}

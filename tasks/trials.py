"""Train the trials of a sweep: several on one node, one GPU each, or one over the GPUs of a node of its own.

A trial that fails, is killed or runs out of memory is an outcome, and leaves the others alone. What an earlier attempt
or run has trained is found, and not trained again. See docs/resilience.md.
"""

import contextvars
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flytekit import PythonFunctionTask, task
from flytekit.exceptions.user import FlyteUserRuntimeException
from flytekit.extend import TaskPlugins
from flytekit.types.directory import FlyteDirectory

from tasks import checkpoints, interruption, pages, pod_check, settings, trial_results
from tasks.declaring import training_node_task, wandb_secrets
from tasks.elastic import PlannedElastic, PlannedElasticTask, elastic
from tasks.train import train_here
from tasks.transfer import download
from tasks.trial_children import Children, Node
from thriftune.checkpoints import layout
from thriftune.config import RunConfig
from thriftune.config.sweep import HalvingConfig
from thriftune.errors import ThriftuneError, UserError, in_a_line
from thriftune.strategies import STRATEGIES
from thriftune.sweeps import states
from thriftune.sweeps.halving import Halving
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import Pack, TrialJob
from thriftune.sweeps.slots import NO_GPU, devices_for
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.trials")

_PAGE_SECONDS = 30.0
# The last page is waited for, but no store that does not answer.
_LAST_SECONDS = 60.0
_LONGEST_ERROR = 500
_HIDES_GPUS = "CUDA_VISIBLE_DEVICES"


@task(**training_node_task(None, *wandb_secrets()), enable_deck=True, deck_fields=())
def train_pack(
    cache_key: str,
    pack: Pack,
    halving: str,
    earlier: list[Outcome],
    models: dict[str, FlyteDirectory],
    datasets: dict[str, FlyteDirectory],
) -> list[Outcome]:
    """Train the trials of a pack, each on one device, at most `slots` at a time.

    Args:
        cache_key: What the pack is known by, for the log.
        pack: The trials.
        halving: How trials are stopped early, a HalvingConfig as JSON; empty if they are not.
        earlier: What came of the trials that ended before; those that are stopped early are compared with them too.
        models: The base models, by key.
        datasets: The prepared datasets, by key.

    Returns:
        What came of each trial, by its number.
    """
    found = [outcome for job in pack.jobs if (outcome := trial_results.found_job(job, halving))]
    for outcome in found:
        logger.info("Trial %d is not trained again: an earlier run or attempt %s it", outcome.number, outcome.status)
    known = {outcome.number for outcome in found}
    left = [job for job in pack.jobs if job.number not in known]
    made: list[Outcome] = []
    if left:
        logger.info("Pack %d (%s): %d trials, %d at a time", pack.number, cache_key, len(left), pack.slots)
        made = _trained(pack, left, halving, [*earlier, *found], models, datasets)
    return sorted([*found, *made], key=lambda outcome: outcome.number)


def _trained(
    pack: Pack,
    jobs: Sequence[TrialJob],
    halving: str,
    ended: Sequence[Outcome],
    models: dict[str, FlyteDirectory],
    datasets: dict[str, FlyteDirectory],
) -> list[Outcome]:
    """Bring models and datasets to this node once, and train what is left."""
    plan = jobs[0].plan
    pod_check.require_for_trials(plan, pack.slots)
    devices = [NO_GPU] * pack.slots
    if plan.hardware.is_gpu:
        devices = devices_for(settings.shown_gpus().get(_HIDES_GPUS), pack.slots)
    node = Node(
        devices,
        {key: download(models[key]) for key in dict.fromkeys(job.model for job in jobs)},
        {key: download(datasets[key]) for key in dict.fromkeys(job.dataset for job in jobs)},
        halving,
    )
    decides = Halving(HalvingConfig.model_validate_json(halving), ended) if halving else None
    with interruption.trials(len(jobs)), tempfile.TemporaryDirectory() as words:
        children = Children(jobs, node, decides, Path(words))
        with _page(pack.number, jobs, children):
            return children.run()


@contextmanager
def _page(number: int, jobs: Sequence[TrialJob], children: Children) -> Iterator[None]:
    """Show the page of a pack again and again as a deck, from a thread, while a block trains its trials."""
    places = {job.number: _page_of(job) for job in jobs}
    stop = threading.Event()

    def show() -> None:
        try:
            pages.publish_deck("Trials", states.page_of(number, children.states(), places))
        except (ThriftuneError, OSError) as error:
            logger.warning("The page of the trials was not renewed: %s", in_a_line(error))

    def renew() -> None:
        show()
        while not stop.wait(_PAGE_SECONDS):
            show()
        show()

    # Flyte keeps in a context variable what a deck belongs to.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(renew,), name="page of the trials", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LAST_SECONDS)


def _page_of(job: TrialJob) -> str:
    if settings.is_local():
        return str(settings.lines_path(RunConfig.model_validate_json(job.config).name) / layout.PAGE)
    return f"{checkpoints.trial_store(job.cache_key).prefix}/{layout.PAGE}"


@dataclass
class TrialElastic(PlannedElastic):
    """A PlannedElastic for one trial, with the arguments `number` and `record` too."""


class TrialElasticTask(PlannedElasticTask):
    """Trains one trial on a node of its own; an error in its run is an outcome."""

    def execute(self, **kwargs: Any) -> Any:
        """Train, unless an earlier run did: in workers where the strategy is distributed, else in this process.

        Args:
            **kwargs: The task's inputs.
        """
        number = kwargs["number"]
        known = trial_results.found(number, kwargs["cache_key"], kwargs["record"])
        if known is not None:
            logger.info("Trial %d is not trained again: an earlier run or attempt trained it", number)
            return known
        began = time.monotonic()
        try:
            if STRATEGIES[kwargs["plan"].strategy].facts.is_distributed:
                outcome = super().execute(**kwargs)
            else:
                outcome = PythonFunctionTask.execute(self, **kwargs)
        except (UserError, FlyteUserRuntimeException) as error:
            logger.error("Trial %d failed: %s", number, error)
            seconds = time.monotonic() - began
            return Outcome(number, "failed", error=in_a_line(error, _LONGEST_ERROR), seconds=seconds)
        checkpoints.remove_steps(kwargs["cache_key"])
        return outcome


TaskPlugins.register_pythontask_plugin(TrialElastic, TrialElasticTask)


@task(
    **training_node_task(TrialElastic(**vars(elastic(1))), *wandb_secrets()),
    enable_deck=True,
    deck_fields=(),
)
def train_trial(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,
    record: str,
    number: int,
    model: FlyteDirectory,
    dataset: FlyteDirectory,
) -> Outcome:
    """Train one trial over the devices of one node.

    Args:
        config: The trial's run.
        plan: Its plan.
        cache_key: What it is known by.
        record: URL of its record in the index; empty in a local run.
        number: Number of the trial.
        model: The base model.
        dataset: The prepared dataset.

    Returns:
        What came of it; an error in its run is an outcome.
    """
    keeps = trial_results.kept_by_trial(number)
    made = train_here(config, plan, cache_key, record, model, dataset, keeps)
    seconds = made.training.gpu_hours.used * 3600 / max(1, plan.devices_per_node) if made.training.gpu_hours else 0.0
    return trial_results.outcome_of(number, made.model, made.training, seconds)

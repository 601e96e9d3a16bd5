"""Calibrate a plan: a few steps on the planned machines, whose figures go into the ledger; and plan again."""

import json
import logging
import time
from dataclasses import asdict
from typing import Any

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import interruption, ledger, pages, pod_check, settings
from tasks.declaring import declared_as, hub_task, node_task
from tasks.elastic import elastic, in_worker
from tasks.failures import explained
from tasks.plan import make_plan
from tasks.training_body import start_of
from tasks.transfer import download, download_once_per_node, transient_errors_retried
from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.errors import ConfigError
from thriftune.planning import calibrated
from thriftune.planning import report as plan_report
from thriftune.planning.ledger import Record, write
from thriftune.planning.ledger.record import from_json
from thriftune.strategies import STRATEGIES
from thriftune.training import calibration
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.recording import record_of_trial
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.calibrate")


def _calibrate(config: RunConfig, plan: TrainingPlan, model: FlyteDirectory) -> str:
    """Train a few steps of a plan, and measure what they take. Runs in each process of the training.

    Args:
        config: The run.
        plan: Its plan.
        model: The base model.

    Returns:
        The record of the ledger, as JSON.
    """
    if STRATEGIES[plan.strategy].facts.is_distributed:
        with explained("a worker of the calibration"), transient_errors_retried():
            return in_worker(lambda: _measured(config, plan, model))
    pod_check.require_planned(plan)  # the agent has looked at the pod of workers
    with transient_errors_retried(), interruption.training(config, in_workers=False):
        return _measured(config, plan, model)


def _measured(config: RunConfig, plan: TrainingPlan, model: FlyteDirectory) -> str:
    rank = STRATEGIES[plan.strategy].join(plan)
    began, start = time.monotonic(), start_of(config)
    (model_dir,) = download_once_per_node(model)
    start_dir = download(start) if start else None
    fetching_seconds = time.monotonic() - began
    found = calibration.calibrate(config, plan, model_dir, start_dir)
    family = ledger.family_of(config, model_dir)
    if isinstance(found, MemoryUse):  # this process ran out of memory, and ends the others
        write(ledger.place(), record_of_trial(config, plan, family, found, None, fetching_seconds))
        raise _does_not_fit(plan, found)
    if not found.updates:
        raise ConfigError.single(
            "training.precision",
            plan.precision,
            "in no step of the calibration the loss scale was small enough to change weights, so it measured nothing.",
            "Calibrate with another precision, or on a machine with bfloat16.",
        )
    record = record_of_trial(config, plan, family, found.memory, found.pace, fetching_seconds)
    if rank.is_main:
        write(ledger.place(), record)
    distributed.leave()
    return record.as_json().decode()


def _does_not_fit(plan: TrainingPlan, held: MemoryUse) -> ConfigError:
    """The answer where memory ran out: an error, which ends the other processes and pods too."""
    verdict, limit = plan.memory.verdict, plan.device_limit_gib
    said = f"{plan.memory.device_gib:.1f} GiB were planned"
    if verdict is not None:
        said += f" ({verdict.low_gib:.1f} to {verdict.high_gib:.1f} for {verdict.where})"
    beside = f", of {held.reserved:.1f} reserved, and {held.context:.1f} beside it" if held.reserved else ""
    return ConfigError.single(
        "plan",
        plan_report.machines(plan),
        f"does not fit: in a calibration of it memory ran out with {held.device:.1f} GiB allocated{beside}, of "
        f"{limit:.1f} GiB; {said}.",
        "The ledger knows it now: plan the run again, and it is planned otherwise.",
        code="plan-does-not-fit",
    )


def _declare(name: str, task_config: Any = None) -> Any:
    return declared_as(name, _calibrate, **node_task(task_config))


calibrate_1 = _declare("calibrate_1", elastic(1))
calibrate_2 = _declare("calibrate_2", elastic(2))
calibrate_3 = _declare("calibrate_3", elastic(3))
calibrate_4 = _declare("calibrate_4", elastic(4))
calibrate_6 = _declare("calibrate_6", elastic(6))
calibrate_8 = _declare("calibrate_8", elastic(8))
calibrate_in_one_process = _declare("calibrate_in_one_process")

_BY_NODES = {nodes: globals()[f"calibrate_{nodes}"] for nodes in NODE_COUNTS}


def calibration_task(plan: TrainingPlan) -> Any:
    """The task that calibrates a plan.

    Args:
        plan: The plan.
    """
    return _BY_NODES[plan.nodes] if STRATEGIES[plan.strategy].facts.is_distributed else calibrate_in_one_process


@task(**hub_task(), enable_deck=True, deck_fields=())
def show_calibrated(config: RunConfig, plan: TrainingPlan, record: str) -> str:
    """Show what was planned and measured, and plan the run again.

    Args:
        config: The run.
        plan: The plan that was calibrated.
        record: What was measured.

    Returns:
        Planned and measured figures, and the plan that follows from them, as JSON.
    """
    found = from_json(record.encode())
    logger.info("\n%s", calibrated.text(config.name, plan, found))
    pages.show("calibration", config.name, calibrated.page_of(config.name, plan, found), _content(found))
    made = make_plan(config, on_this_machine=settings.is_local(), found=found)
    after = json.loads(plan_report.plan_json(made, config.name))
    return json.dumps({"calibration": json.loads(_content(found)), "plan": after}, indent=2) + "\n"


def _content(record: Record) -> str:
    return json.dumps({"planned": asdict(record.planned), "measured": asdict(record.measured)}, indent=2) + "\n"

"""One attempt of one training, as a task of Flyte makes it; `python -m faults.attempt JOB.json` or from the nursery.

A strategy of one process trains in this one. Any other runs in worker processes of the package's own Elastic task,
whose agent this process is; a job of several nodes has several of these processes.
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path

from flytekit import task
from flytekit.core.base_task import IgnoreOutputs
from flytekit.exceptions.user import FlyteRecoverableException
from planning import planned
from transformers import trainer

from faults.job import Job
from faults.recording import Events, Recorder, plant_in_process
from tasks import log
from tasks.elastic import elastic, in_worker
from tasks.transfer import transient_errors_retried
from thriftune import distributed
from thriftune.checkpoints.location import CheckpointLocation, Writer
from thriftune.config import RunConfig
from thriftune.errors import UserError
from thriftune.strategies import STRATEGIES
from thriftune.training.fit import Inputs, fit
from thriftune.training_plan import TrainingPlan


def plan_of(job: Job, config: RunConfig) -> TrainingPlan:
    """The plan of the run on this machine; for several nodes one on each of them with as few processes."""
    plan = planned(config, model=Path(job.model))
    if job.precision:
        plan = dataclasses.replace(plan, precision=job.precision)
    return dataclasses.replace(plan, nodes=job.nodes, devices_per_node=plan.processes_per_node // job.nodes)


def uri_of(job: Job) -> CheckpointLocation:
    """Where checkpoints lie; nodes that are processes of one machine have each a disk of their own."""
    scratch = Path(job.scratch) / f"node-{distributed.current_rank().node}"
    return CheckpointLocation(job.here, scratch, job.grace_seconds, Writer("run", job.number))


def train(job: Job) -> None:
    """What a process of a training does."""
    config = RunConfig.model_validate(job.config)
    plan = plan_of(job, config)
    STRATEGIES[plan.strategy].join(plan)
    inputs = Inputs(config, plan, Path(job.model), Path(job.dataset), checkpoints=uri_of(job))
    fit(inputs, Path(job.output))
    distributed.leave()


def train_alone(job: Job) -> None:
    """An attempt in this process."""
    begin(job)
    with transient_errors_retried():
        train(job)


def train_in_worker(job: Job) -> None:
    """What a worker process of an attempt does."""
    begin(job)
    with transient_errors_retried():
        in_worker(lambda: train(job))


@task(task_config=elastic(1))
def one_node(config: RunConfig, plan: TrainingPlan, job_file: str) -> str:
    """An attempt on one node."""
    train_in_worker(Job.read(job_file))
    return ""


@task(task_config=elastic(2))
def two_nodes(config: RunConfig, plan: TrainingPlan, job_file: str) -> str:
    """An attempt on two nodes."""
    train_in_worker(Job.read(job_file))
    return ""


def begin(job: Job) -> None:
    """Have everything written down that happens in this process."""
    os.environ.update(job.environment)
    log.configure()
    logging.getLogger("thriftune").setLevel(logging.INFO)
    plant_in_process(job)
    if job.precision == "fp16":
        distributed.use_cpu_accelerator()
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True  # slow on the CPU, but right
    trainer.DEFAULT_CALLBACKS.append(Recorder(job))


def run(file: str) -> int:
    """Make the attempt, and write down how it ended: finished, recoverable (tried again), user or error (neither)."""
    job = Job.read(file)
    events = Events(job.events)
    events.add("start")
    try:
        config = RunConfig.model_validate(job.config)
        plan = plan_of(job, config)
        if STRATEGIES[plan.strategy].facts.is_distributed:
            os.environ.update(job.environment)
            declared = one_node if job.nodes == 1 else two_nodes
            declared._task_config = dataclasses.replace(declared.task_config, start_method=job.start_method)
            declared.execute(config=config, plan=plan, job_file=file)
        else:
            train_alone(job)
    except FlyteRecoverableException as error:
        events.add("end", outcome="recoverable", message=str(error))
    except IgnoreOutputs:  # that of a node without global rank 0
        events.add("end", outcome="finished", message="")
        return 0
    except UserError as error:
        events.add("end", outcome="user", message=str(error))
    except Exception as error:
        logging.getLogger(__name__).exception("The attempt failed")
        events.add("end", outcome="error", message=f"{type(error).__name__}: {error}")
    else:
        events.add("end", outcome="finished", message="")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))

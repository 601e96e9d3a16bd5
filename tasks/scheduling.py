"""Common parts of scheduled runs: the run, notifications, where it writes, and that it never overlaps itself."""

import functools
import logging
from dataclasses import replace
from typing import Any

from flytekit import (
    Annotations,
    ConcurrencyLimitBehavior,
    ConcurrencyPolicy,
    Email,
    Labels,
    LaunchPlan,
    WorkflowExecutionPhase,
)
from flytekit.models.common import RawOutputDataConfig
from flytekit.models.interface import Parameter
from flytekit.models.literals import Literal, Scalar
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

import thriftune
from tasks import run_files
from tasks.platform import variable
from tasks.settings import CHECKOUT, PLATFORM
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.errors import ConfigError

logger = logging.getLogger("thriftune.tasks.scheduling")

_BAD_ENDS = (WorkflowExecutionPhase.FAILED, WorkflowExecutionPhase.TIMED_OUT, WorkflowExecutionPhase.ABORTED)


def run_file(setting: str, workflow: str) -> RunConfig:
    """Read the run that a launch plan starts.

    Args:
        setting: Name of the setting with its file: a path, relative to the root of the checkout if it is not absolute.
        workflow: Name of the launch plan's workflow.

    Raises:
        ConfigError: The file does not exist, is not YAML, or is not a run of this workflow.
    """
    place = str(getattr(PLATFORM, setting))
    try:
        content = run_files.load((CHECKOUT / place).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        remedy = "Name a run file like those in configs/; launch plans are registered from a checkout."
        raise ConfigError.single(variable(setting), place, f"cannot be read: {error}.", remedy) from error
    try:
        run = RunConfig.model_validate(content)
    except ConfigError as error:
        problems = [
            replace(problem, field=f"{variable(setting)} = {place}: {problem.field}") for problem in error.problems
        ]
        raise ConfigError(problems) from error
    if METHODS[run.method].workflow != workflow:
        message = f"is a run of method {run.method}, but this launch plan is for {workflow}."
        raise ConfigError.single(variable(setting), place, message, "Name another file.")
    return run


def with_plain_default(plan: LaunchPlan) -> LaunchPlan:
    """Register the run that is a plan's default as what Flyte's console sends too.

    `pyflyte run remote-launchplan` fails on a default in flytekit's own encoding: it makes a text of it, and then wants
    to encode that as a section (flytekit 1.16). Only what is registered is replaced: `pyflyte run` of the plan's file,
    and a plan that is called, need the run itself.

    Args:
        plan: A plan whose input `config` has a default.

    Returns:
        The plan.
    """
    parameters, run = plan.parameters.parameters, plan.saved_inputs["config"]
    plain = Literal(Scalar(generic=json_format.Parse(run.model_dump_json(), Struct())))
    parameters["config"] = Parameter(parameters["config"].var, default=plain, required=False)
    return plan


@functools.cache
def _say_who_is_told() -> None:
    """Say once, for all launch plans, if nobody is."""
    if not PLATFORM.notify:
        logger.warning("%s is not set: nobody is told when a scheduled run fails", variable("notify"))


def shared_options(run: RunConfig, place: str) -> dict[str, Any]:
    """Options that all launch plans share.

    Args:
        run: The run that it starts.
        place: The file of the run, as Flyte's console shows it.

    Returns:
        Keyword arguments for `LaunchPlan.get_or_create`.
    """
    _say_who_is_told()
    mail = [Email(phases=list(_BAD_ENDS), recipients_email=list(PLATFORM.notify))] if PLATFORM.notify else []
    return {
        "notifications": mail,
        # If a run takes longer than the time to the next one, both would pay for nodes at the same time.
        "concurrency": ConcurrencyPolicy(max_concurrency=1, behavior=ConcurrencyLimitBehavior.SKIP),
        "labels": Labels({"app": "thriftune", "run": run.name, **PLATFORM.labels}),
        "annotations": Annotations({"thriftune/config": place, "thriftune/version": thriftune.__version__}),
        "raw_output_data_config": RawOutputDataConfig(PLATFORM.raw_output) if PLATFORM.raw_output else None,
    }

"""What a run needs, and that it fits what it can have: decided before anything is fetched."""

import logging

from flytekit import task

import deepspeed_configs
from tasks import pages, settings
from tasks.declaring import PLAN_CACHE, cache, hub_task
from tasks.transfer import transient_errors_retried
from thriftune.config import AUTO, Method, RunConfig, workflow_rules
from thriftune.errors import ConfigError
from thriftune.planning import catalogue, offers, planner
from thriftune.planning import report as plan_report
from thriftune.strategies.zero import layout as zero_layout
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.plan")


@task(**hub_task(), cache=cache(PLAN_CACHE), enable_deck=True, deck_fields=())
def plan(
    config: RunConfig,
    method: Method,
    pinned: str,  # noqa: ARG001 - read by Flyte's cache alone
    has_table: bool = False,
) -> TrainingPlan:
    """Plan a run of a workflow: for this machine when it runs here, for the catalogue's nodes on a cluster.

    Args:
        config: The run.
        method: What the workflow runs: full or qlora.
        pinned: What `pin` said of what the plan depends on.
        has_table: Whether the workflow was given a table.

    Returns:
        The plan.
    """
    workflow_rules.require_method(config, method)
    workflow_rules.require_table(config, has_table=has_table)
    return make_plan(config, on_this_machine=settings.is_local())


@task(**hub_task(), enable_deck=True, deck_fields=())
def show_plan(config: RunConfig) -> str:
    """Plan a run without running it: for this machine if it asks for the CPU, else for the catalogue's nodes.

    Args:
        config: The run.

    Returns:
        The plan as JSON.
    """
    made = make_plan(config, on_this_machine=is_for_this_machine(config))
    return plan_report.plan_json(made, config.name)


def make_plan(config: RunConfig, *, on_this_machine: bool) -> TrainingPlan:
    """Plan a run, and show the plan.

    Args:
        config: The run.
        on_this_machine: Take the machine this task runs on, in place of the catalogue.
    """
    with transient_errors_retried():
        made = planner.plan(
            config,
            catalogue.load(settings.PLATFORM.catalogue),
            zero_files(config),
            token=settings.hub_token(),
            here=offers.this_machine(settings.local_root()) if on_this_machine else None,
        )
    logger.info("\n%s", plan_report.plan_table(made, config.name))
    page, content = plan_report.plan_html(made, config.name), plan_report.plan_json(made, config.name)
    pages.show("plan", config.name, page, content)
    return made


def zero_files(config: RunConfig) -> dict[str, dict[str, object]]:
    """The DeepSpeed configurations that a run may use: the shipped ones, and the file it names.

    Raises:
        ConfigError: There is no such file, or it is broken.
    """
    named = config.zero_or_default.config
    is_own = isinstance(named, str) and named not in (AUTO, *zero_layout.SHAPES)
    names = [*zero_layout.SHAPES, *([str(named)] if is_own else [])]
    try:
        return {name: deepspeed_configs.load(name) for name in names}
    except (FileNotFoundError, ValueError) as error:
        remedy = "Name another file, or repair this one."
        raise ConfigError.single("zero.config", named, str(error), remedy, code="zero-config-invalid") from error


def is_for_this_machine(config: RunConfig) -> bool:
    """Whether a run that is only looked at would be one on this machine: it asks for a CPU, and for no node type."""
    return config.hardware.device == "CPU" and config.hardware.instance is None

"""Plan a run before anything is fetched: what it needs, and which machines it fits on."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

from flytekit import task

from tasks import ledger, pages, settings
from tasks.declaring import PLAN_CACHE, cache, hub_task
from tasks.transfer import transient_errors_retried
from thriftune.config import RunConfig, workflow_rules
from thriftune.models import fetching
from thriftune.planning import catalogue, offers, planner
from thriftune.planning import report as plan_report
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.ledger import Record
from thriftune.planning.offers import Offer
from thriftune.planning.time.run import Size
from thriftune.preflight import sizing
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.plan")


@task(**hub_task(), cache=cache(PLAN_CACHE, "config"), enable_deck=True, deck_fields=())
def plan(
    config: RunConfig,
    workflow: str,
    pinned: str,  # noqa: ARG001 - read by Flyte's cache alone
    has_table: bool = False,
) -> TrainingPlan:
    """Plan a run of a workflow: for this machine when it runs here, for the catalogue's nodes on a cluster.

    Args:
        config: The run.
        workflow: Name of the workflow that asks, which may run only some methods.
        pinned: The digest that `pin` made of the run and of all else that the plan depends on.
        has_table: Whether the workflow has a table as input.

    Returns:
        The plan.
    """
    workflow_rules.require_workflow(config, workflow)
    workflow_rules.require_table(config, has_table=has_table)
    return make_plan(config, on_this_machine=settings.is_local())


@task(**hub_task(), enable_deck=True, deck_fields=())
def show_plan(config: RunConfig) -> str:
    """Plan a run without running it, for the machines that it would run on (`is_for_this_machine`).

    Args:
        config: The run.

    Returns:
        The plan as JSON.
    """
    made = make_plan(config, on_this_machine=is_for_this_machine(config))
    return plan_report.plan_json(made, config.name)


class ToCalibrate(NamedTuple):
    """A plan to calibrate, and the present version of its model."""

    plan: TrainingPlan
    model_version: str


@task(**hub_task(), enable_deck=True, deck_fields=())
def plan_to_calibrate(config: RunConfig) -> ToCalibrate:
    """Plan a run for the machines that it would run on, by what is known now: this is never served from the cache.

    Args:
        config: The run.

    Returns:
        The plan, which may be uncertain, and the version of the model to fetch.
    """
    made = make_plan(config, on_this_machine=settings.is_local())
    with transient_errors_retried():
        version = fetching.version(config.model.source, config.model.revision, settings.hub_token())
    return ToCalibrate(made, version)


def make_plan(config: RunConfig, *, on_this_machine: bool, found: Record | None = None) -> TrainingPlan:
    """Plan a run as `planned` does, and show the plan.

    Args:
        config: The run.
        on_this_machine: Whether to plan for the machine that this task runs on, instead of the catalogue.
        found: A record that the ledger may not have yet.
    """
    made = planned(config, on_this_machine=on_this_machine, found=found)
    logger.info("\n%s", plan_report.plan_table(made, config.name))
    page, content = plan_report.plan_html(made, config.name), plan_report.plan_json(made, config.name)
    pages.show("plan", config.name, page, content)
    return made


def planned(config: RunConfig, *, on_this_machine: bool, found: Record | None = None) -> TrainingPlan:
    """Plan a run, by its first rows and by what earlier runs took.

    Args:
        config: The run.
        on_this_machine: Whether to plan for the machine that this task runs on, instead of the catalogue.
        found: What a run has just measured, in case the ledger could not be written.
    """
    with transient_errors_retried():
        records = ledger.records()
        records += [found] if found is not None and found not in records else []
        there = surroundings(records, on_this_machine=on_this_machine)
        return there.plan(config, sizing.size_of(config, settings.hub_token()))


@dataclass(frozen=True)
class Surroundings:
    """What a plan depends on besides its run.

    Attributes:
        nodes: The catalogue.
        here: This machine, as it was when it was looked at; None to plan for the catalogue's nodes.
        records: What earlier runs took.
    """

    nodes: Catalogue
    here: Offer | None
    records: list[Record]

    def plan(self, config: RunConfig, size: Size | None) -> TrainingPlan:
        """Plan a run.

        Args:
            config: The run.
            size: Its rows; None where they cannot be read.
        """
        return planner.plan(
            config,
            self.nodes,
            token=settings.hub_token(),
            here=self.here,
            size=size,
            records=self.records,
            interruptible=settings.PLATFORM.interruptible,
        )


def surroundings(records: list[Record], *, on_this_machine: bool) -> Surroundings:
    """What plans depend on besides their runs, read once.

    Args:
        records: What earlier runs took.
        on_this_machine: Whether to plan for the machine that this task runs on, instead of the catalogue.
    """
    nodes = catalogue.load(settings.PLATFORM.catalogue)
    here = offers.this_machine(settings.local_root(), nodes.devices) if on_this_machine else None
    return Surroundings(nodes, here, records)


def is_for_this_machine(config: RunConfig) -> bool:
    """Whether to plan a run that is not started for this machine: here, it asks for a CPU, and for no node type.

    On a cluster the catalogue's nodes are planned for, as by the workflow that would run it.
    """
    return settings.is_local() and config.hardware.device == "CPU" and config.hardware.instance is None

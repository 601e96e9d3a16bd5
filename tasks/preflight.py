"""The task before every GPU task: check everything about a run that needs no GPU, and refuse all problems at once."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from flytekit import task
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.structured import StructuredDataset

from tasks import pages, settings
from tasks.declaring import cpu_task, hub_secrets, wandb_secrets
from tasks.plan import is_for_this_machine, make_plan
from tasks.platform import variable
from tasks.transfer import download_table, table_version, transient_errors_retried, try_outputs
from thriftune import preflight as checks
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError, TransientError, UserError
from thriftune.planning import catalogue, offers
from thriftune.preflight import Preflight, SecretState, report
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.preflight")


class Checked(NamedTuple):
    """The report of a preflight as JSON, the plan that it checked, and present versions of what the run reads.

    The plan is passed on so that each node of a workflow follows only one other: flytekit writes several in the order
    of their memory addresses, so that a workflow would look different when it is registered again.
    """

    report: str
    plan: TrainingPlan
    model_version: str
    tokenizer_version: str
    data_version: str
    benchmarks_version: str


@task(**cpu_task(None, *hub_secrets(), *wandb_secrets()), enable_deck=True, deck_fields=())
def preflight(config: RunConfig, plan: TrainingPlan, table: StructuredDataset | None = None) -> Checked:
    """Check a planned run, and refuse one that cannot work.

    Args:
        config: The run.
        plan: Its plan.
        table: The rows of source input:table; None if the workflow has no table.

    Returns:
        The report, the plan, and the versions of model, data and benchmarks, with the tokenizer's fingerprint.
    """
    files = download_table(table) if table is not None else None
    with transient_errors_retried():
        checked = check(config, plan, files, table_version(table) if table is not None else "")
        checked.require_ok()
    facts = checked.facts
    versions = (facts.model_version, facts.tokenizer_version, facts.data_version, facts.benchmarks_version)
    return Checked(json.dumps(checked.as_json()), plan, *versions)


@task(**cpu_task(None, *hub_secrets(), *wandb_secrets()), enable_deck=True, deck_fields=())
def preflight_alone(config: RunConfig) -> str:
    """Check a run without running it. If it has no plan, the reason is one of the problems in the report.

    Args:
        config: The run.

    Returns:
        The report as JSON.
    """
    with transient_errors_retried():
        checked = check(config, _plan_or_error(config))
        checked.require_ok()
    return json.dumps(checked.as_json())


def _plan_or_error(config: RunConfig) -> TrainingPlan | ThriftuneError:
    try:
        return make_plan(config, on_this_machine=is_for_this_machine(config))
    except UserError as error:
        return error
    except FlyteRecoverableException as error:  # the plan's transient error comes as this
        return TransientError(str(error))


def check(
    config: RunConfig, plan: TrainingPlan | ThriftuneError, table: list[Path] | None = None, version: str = ""
) -> Preflight:
    """Run the checks, and show them in the log and as a deck before anything is refused.

    Args:
        config: The run.
        plan: Its plan, or why it has none.
        table: Files of the table that the workflow was given; None if it has none.
        version: Version of its content.
    """
    token = settings.hub_token()
    checked = checks.run(
        config,
        plan=plan,
        token=token,
        table=table,
        table_version=version,
        secrets=_secrets(config, token),
        written=try_outputs(),
        folder=settings.local_root() if _writes_here(plan) else None,
        network_gbps=_network_gbps(plan),
        grace_seconds=settings.PLATFORM.grace_seconds,
    )
    logger.info("\n%s", report.text(checked))
    content = json.dumps(checked.as_json(), indent=2) + "\n"
    pages.show("preflight", config.name, report.html(checked), content)
    return checked


def hub_secret(token: str | None) -> list[SecretState]:
    """The secret of the tasks that talk to the hub, if the platform names one.

    Args:
        token: Hub token that this task has.
    """
    hub, what = settings.PLATFORM.hub_secret, "the tasks that talk to the hub"
    return [SecretState(variable("hub_secret"), hub, token is not None, what)] if hub else []


def _secrets(config: RunConfig, token: str | None) -> list[SecretState]:
    """The secrets that the run needs or the platform names."""
    wandb, states = settings.PLATFORM.wandb_secret, hub_secret(token)
    if config.training.report_to == "wandb":
        there = settings.has_wandb_login()
        states.append(SecretState(variable("wandb_secret"), wandb, there, "reporting to Weights & Biases"))
    return states


def _writes_here(plan: TrainingPlan | ThriftuneError) -> bool:
    """Whether the run would write to this disk: not if it is only checked here and planned for a cluster."""
    return settings.is_local() and not (isinstance(plan, TrainingPlan) and plan.instance != offers.THIS_MACHINE)


def _network_gbps(plan: TrainingPlan | ThriftuneError) -> float | None:
    """Network bandwidth of a planned node in Gbit/s; None for this machine."""
    if not isinstance(plan, TrainingPlan) or plan.instance == offers.THIS_MACHINE:
        return None
    return catalogue.load(settings.PLATFORM.catalogue).get(plan.instance).network_gbps

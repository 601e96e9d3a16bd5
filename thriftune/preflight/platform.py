"""The platform: the plan, the strategy's settings, secrets, and the time to upload a checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thriftune.config import RunConfig
from thriftune.errors import ConfigError, Problem, ThriftuneError, TransientError, UserError
from thriftune.methods import METHODS
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.report import machines
from thriftune.planning.search import ways_of
from thriftune.planning.verdict import numbers
from thriftune.preflight.outcome import unreachable
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

# AWS gives a spot node two minutes.
# Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
GRACE_SECONDS = 120.0
# Share of a network's rate that an upload to an object store keeps up.
_EFFICIENCY = 0.5
_GIGABIT_BYTES = 1e9 / 8

Plan = TrainingPlan | ThriftuneError


def check_plan(plan: Plan) -> Iterator[Problem]:
    """Why there is no plan, if there is none.

    Args:
        plan: The plan of the run, or the error that planning raised.
    """
    if isinstance(plan, TransientError):
        yield unreachable(plan, "plan", "")
    elif isinstance(plan, UserError):
        yield from plan.problems


def check_certain(config: RunConfig, plan: Plan) -> Iterator[Problem]:
    """Whether a run surely fits the machines of a cluster; on this machine, trying costs nothing.

    Args:
        config: The run.
        plan: Its plan.
    """
    if not isinstance(plan, TrainingPlan) or plan.instance == THIS_MACHINE or config.plan.accept_uncertain:
        return
    verdict = plan.memory.verdict
    if verdict is not None and verdict.answer == "uncertain":
        yield Problem.coded(
            "plan-uncertain",
            "plan.accept_uncertain",
            "false",
            f"it is uncertain whether the run fits {machines(plan)}: {numbers(verdict)}.",
            f"{verdict.settles[:1].upper()}{verdict.settles[1:]}. To try all the same: plan.accept_uncertain: true.",
        )


def plan_line(plan: TrainingPlan) -> str:
    """A plan in one line: 2 x g4dn.12xlarge (4 T4 each), zero3, fp16, global batch 64 = 8 ranks x micro batch ..."""
    nodes = f"{plan.nodes} x {plan.instance} ({plan.devices_per_node} {plan.device} each)"
    how = STRATEGIES[plan.strategy].short(plan) or METHODS[plan.method].facts.title
    batch = plan.batch
    return (
        f"{nodes}, {how}, {plan.precision}, global batch {batch.global_batch} = "
        f"{batch.world_size} rank{'s' if batch.world_size > 1 else ''} x micro batch {batch.micro_batch} x "
        f"accumulation {batch.accumulation}"
    )


def check_settings(config: RunConfig, plan: Plan) -> Iterator[Problem]:
    """Whether the settings of the run's strategy are valid, by our rules and by its library's.

    Args:
        config: The run.
        plan: Its plan, which holds the settings that were chosen.
    """
    logger.info("Preflight: the settings of the strategy")
    if isinstance(plan, TrainingPlan):
        yield from STRATEGIES[plan.strategy].check(plan.settings)
        return
    try:  # without a plan, whatever the run leaves to choose among
        ways_of(config)
    except ConfigError as error:
        yield from error.problems


@dataclass(frozen=True)
class SecretState:
    """A secret that the tasks of a run ask for.

    Attributes:
        setting: Environment variable that names it.
        name: group/key; empty where the setting is not set.
        is_there: Whether it can be read, or is not needed.
        purpose: What the run needs it for.
    """

    setting: str
    name: str
    is_there: bool
    purpose: str


def check_secrets(secrets: Sequence[SecretState]) -> Iterator[Problem]:
    """Secrets that are needed and missing.

    Args:
        secrets: All that the tasks of the run ask for.
    """
    for secret in secrets:
        if secret.is_there:
            continue
        if secret.name:
            message = f"is not mounted in this task, so it is not there for {secret.purpose}."
            remedy = f"Create it in the project's namespace, or unset {secret.setting} where it is not needed."
        else:
            message = f"is not set, and the run needs it for {secret.purpose}."
            remedy = "Name the secret when you register or run, as group/key."
        yield Problem.coded("secret-missing", secret.setting, secret.name, message, remedy)


def checkpoint_bytes(plan: TrainingPlan) -> int:
    """Bytes of a checkpoint that the node with the most uploads: weights, and AdamW's two moments.

    Args:
        plan: The plan.
    """
    strategy = STRATEGIES[plan.strategy]
    return strategy.checkpoint_bytes(plan.trained_parameters, plan.precision, plan.settings, plan.nodes)


def upload_seconds(size: int, network_gbps: float) -> float:
    """Seconds that an upload takes.

    Args:
        size: Bytes.
        network_gbps: The node's sustained network rate, in Gbit/s; half of it is assumed to be used.
    """
    return size / (network_gbps * _GIGABIT_BYTES * _EFFICIENCY)


def check_upload(seconds: float, size: int, grace_seconds: float) -> Iterator[Problem]:
    """Whether a spot node can upload a checkpoint between its notice and its end.

    Args:
        seconds: Seconds that the upload takes.
        size: Bytes of the checkpoint.
        grace_seconds: Seconds between the notice and the end.
    """
    if seconds > grace_seconds:
        yield Problem.coded(
            "upload-exceeds-grace",
            "hardware.nodes",
            "",
            f"a checkpoint is {size / 2**30:.0f} GiB per node and takes {seconds:.0f} s to upload; a spot node has "
            f"{grace_seconds:.0f} s.",
            "Use on-demand nodes, more of them, or ones with a faster network.",
        )

"""The platform: the plan, the strategy's settings, secrets, and the time to upload a checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thriftune.config import RunConfig
from thriftune.errors import ConfigError, Problem, ThriftuneError, TransientError, UserError
from thriftune.methods import METHODS
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.report import machines
from thriftune.planning.saving import checkpoint_bytes, upload_seconds, write_seconds
from thriftune.planning.search import ways_of
from thriftune.planning.verdict import numbers
from thriftune.preflight.outcome import unreachable
from thriftune.strategies import STRATEGIES
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

# AWS gives a spot node two minutes.
# Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
GRACE_SECONDS = 120.0

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


@dataclass(frozen=True)
class LastSave:
    """What a node does after the notice that it goes away.

    Attributes:
        size: Bytes of the checkpoint that it writes and uploads.
        network_gbps: Its network, in Gbit/s.
        step_seconds: Seconds of the step that it ends first: of a whole one at most; 0 where that is not known, and on
            demand, where a notice is rare.
    """

    size: int
    network_gbps: float
    step_seconds: float = 0.0

    @property
    def upload_seconds(self) -> float:
        """Seconds of the upload, at the assumed share of the network."""
        return upload_seconds(self.size, self.network_gbps)

    @property
    def seconds(self) -> float:
        """Seconds until the checkpoint is in the store."""
        return self.step_seconds + write_seconds(self.size) + self.upload_seconds


def last_save(plan: TrainingPlan, network_gbps: float) -> LastSave:
    """What a node of a plan does after the notice that it goes away.

    Args:
        plan: The plan.
        network_gbps: The node's sustained network rate, in Gbit/s.
    """
    step = plan.time.step.seconds if plan.is_spot and plan.time else 0.0
    return LastSave(checkpoint_bytes(plan), network_gbps, step)


def check_last_save(save: LastSave, grace_seconds: float) -> Iterator[Problem]:
    """Whether a node that goes away can save a checkpoint between its notice and its end.

    Args:
        save: What it does then.
        grace_seconds: Seconds between the notice and the end.
    """
    if save.seconds <= grace_seconds:
        return
    rate = save.size / save.upload_seconds / 1e9
    parts = [f"{write_seconds(save.size):.0f} s to write", f"{save.upload_seconds:.0f} s to upload at {rate:.2g} GB/s"]
    if save.step_seconds:
        parts.insert(0, f"{save.step_seconds:.0f} s until its step is done")
    yield Problem.coded(
        "upload-exceeds-grace",
        "hardware.nodes",
        "",
        f"a checkpoint is {save.size / 2**30:.1f} GiB per node. A node that goes away needs {', '.join(parts)}: "
        f"{save.seconds:.0f} s, and its pod has {grace_seconds:.0f} s (THRIFTUNE_GRACE_SECONDS). Steps since the last "
        "checkpoint are then lost.",
        "Use on-demand nodes, more of them, or ones with a faster network; or save more often "
        "(checkpoints.every_minutes).",
    )

"""The settings of a platform: environment variables, each documented once, here, with its unit.

They describe a cluster, which a run file does not: image, secrets, limits. `tasks.settings` reads them.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from croniter import croniter
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic_core import PydanticCustomError

from pod_templates import INSTANCE_LABEL, GangScheduler
from thriftune.config import Section
from thriftune.config import messages as config_errors
from thriftune.config.data import PATH_OR_URL, places
from thriftune.config.rules import with_user
from thriftune.errors import ConfigError, Problem

_PREFIX = "THRIFTUNE_"
_OTHER_NAMES = {"image": "FLYTE_IMAGE"}
# Variables that Kubernetes gives every pod if there is a service called thriftune.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)$")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LABEL_NAME = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
# Labels that scheduled runs always have.
_RESERVED = ("app", "run")


def _pairs(value: Any) -> Any:
    """Parse name=value,name=value into a mapping."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    wrong = next((part for part in parts if "=" not in part), None)
    if wrong:
        raise _wrong(f"contains {wrong!r}, which is not name=value")
    names = [part.split("=", 1)[0] for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise _wrong(f"has {twice} twice")
    return dict(part.split("=", 1) for part in parts)


def _listed(value: Any) -> Any:
    """Parse a,b,c into a tuple."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _label_values(pairs: dict[str, str]) -> dict[str, str]:
    for name, value in pairs.items():
        if not _LABEL_NAME.fullmatch(name) or not _LABEL_VALUE.fullmatch(value):
            raise _wrong(f"{name}={value} is not a label: use at most 63 letters, digits, dots and dashes")
        if name in _RESERVED:
            raise _wrong(f"{name} is a label that is always set")
    return pairs


def _scratch(value: str) -> str:
    kind, _, name = value.partition(":")
    if (kind == "emptyDir" and not name) or (kind in ("class", "claim") and _OBJECT_NAME.fullmatch(name)):
        return value
    raise _wrong("is not emptyDir, class:<storage class> or claim:<claim>")


def _five_fields(value: str) -> str:
    if len(value.split()) != 5:
        raise _wrong("does not have five fields: minute, hour, day of month, month, day of week")
    if not croniter.is_valid(value):
        raise _wrong("is not a time: a field is out of range")
    return value


def _addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    wrong = next((value for value in values if not re.fullmatch(r"[^@\s]+@[^@\s]+", value)), None)
    if wrong:
        raise _wrong(f"contains {wrong!r}, which is not a mail address")
    return values


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{message}", {"message": message})


def _matching(pattern: str, message: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise _wrong(message)
        return value

    return AfterValidator(check)


Quantity = Annotated[str, _matching(r"(?!0+(\.0+)?\D)\d+(\.\d+)?(Mi|Gi|Ti|M|G|T)", "is not a quantity such as 8Gi")]
Hours = Annotated[float, Field(gt=0, le=8760)]
SecretName = Annotated[str, _matching(r"([^/\s]+/[^/\s]+)?", "is not group/key")]
Bucket = Annotated[str, _matching(r"(s3|gs|gcs|abfs|abfss)://\S+", "is not a URL such as s3://bucket/prefix")]
NodeLabel = Annotated[str, _matching(_LABEL_NAME.pattern, "is not the name of a label or `none`")]
Queue = Annotated[str, _matching(f"({_OBJECT_NAME.pattern})?", "is not the name of a LocalQueue")]
Image = Annotated[str, _matching(r"[^\s]+", "is not the name of an image")]
Cron = Annotated[str, AfterValidator(_five_fields)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs), AfterValidator(_label_values)]


class Platform(Section):
    """What a platform decides, and a run file does not."""

    image: Image | None = Field(
        default=None, description="Image of every task. Without it, `--image` of pyflyte decides."
    )
    hub_secret: SecretName = Field(
        default="", description="group/key of the Flyte secret with a hub token; no secret is used if this is empty."
    )
    wandb_secret: SecretName = Field(
        default="", description="group/key of the Flyte secret with a Weights & Biases key."
    )
    catalogue: Annotated[str | None, PATH_OR_URL] = Field(
        default=None,
        min_length=1,
        description="Path, s3:// or gs:// URL of node types and prices; else the shipped ones.",
    )
    cpu: PositiveInt = Field(default=2, description="CPUs of tasks that need no GPU.")
    memory: Quantity = Field(default="8Gi", description="Memory of tasks that need no GPU and hold no model.")
    disk_gib: PositiveInt = Field(
        default=10, description="Disk of every task, in addition to the models it holds, in GiB."
    )
    prepare_cpu: PositiveInt = Field(
        default=4, description="CPUs that prepare data, with one process each. A pod sees all cores of its machine."
    )
    prepare_memory: Quantity = Field(default="12Gi", description="Memory of the task that prepares data.")
    prepare_disk_gib: PositiveInt = Field(
        default=50,
        description="Disk of the task that prepares data, in GiB: about three times the size of the source rows.",
    )
    generate_gpus: NonNegativeInt = Field(default=1, description="GPUs that answer prompts.")
    generate_cpu: PositiveInt = Field(default=4, description="CPUs of the task that answers prompts.")
    generate_memory: Quantity = Field(default="14Gi", description="Memory of the task that answers prompts.")
    generate_disk_gib: PositiveInt = Field(
        default=50, description="Disk of the task that answers prompts, for the model and its adapters, in GiB."
    )
    generate_instance: str = Field(
        default="", description="Node type of the task that answers prompts; any with enough resources if left out."
    )
    shared_memory: Quantity = Field(
        default="4Gi", description="Size of /dev/shm where no plan decides it, as for generate."
    )
    scratch: Annotated[str, AfterValidator(_scratch)] = Field(
        default="emptyDir",
        description="Volume for /tmp of a pod, where models are downloaded and offloaded. emptyDir: the node's "
        "disk. class:<storage class>: a volume of that class, created with the pod and removed with it. "
        "claim:<claim>: a folder of that ReadWriteMany claim.",
    )
    retries: NonNegativeInt = Field(
        default=2, description="Number of times that a failed task is tried again, unless it trains."
    )
    # A lost node every four hours in the week that `gpu_timeout_hours` allows. AWS's worst class of spot nodes loses
    # "over 20 %" of its nodes in a month: 0.4 in a week for a job of eight. What ends a training that gets nowhere is
    # that two attempts in a row left no new checkpoint (thriftune/checkpoints/attempts.py); this ends one whose pods
    # never start, such as for an image that cannot be pulled, which Flyte gives up after three minutes each.
    training_retries: NonNegativeInt = Field(
        default=42,
        description="The same for a training, which ends before if two attempts in a row left no new checkpoint.",
    )
    checkpoints: Annotated[Bucket | None, PATH_OR_URL] = Field(
        default=None,
        description="Bucket and prefix of the checkpoints of trainings; if left out, below the prefix of outputs.",
    )
    ledger: Annotated[Bucket | None, PATH_OR_URL] = Field(
        default=None,
        description="Bucket and prefix where trainings leave what was planned and measured, for later plans. If left "
        "out, beside what Flyte keeps of the project's executions, and for local runs in outputs/ledger.",
    )
    restarts: NonNegativeInt = Field(
        default=3,
        description="Number of times that the worker processes of a node are started again within an attempt.",
    )
    interruptible: bool = Field(default=False, description="Let tasks on GPUs run on spot nodes.")
    cpu_timeout_hours: Hours = Field(
        default=12,
        description="Time limit in hours of an attempt of a task that needs no GPU, including its wait for a node.",
    )
    gpu_timeout_hours: Hours = Field(default=168, description="The same for a task on GPUs.")
    rendezvous_seconds: PositiveInt = Field(
        default=1800, description="Seconds that the pods of a job wait for each other, while nodes and images come."
    )
    grace_seconds: PositiveInt = Field(
        default=120,
        description="Seconds that a pod may run after the notice that its node goes away; AWS: 120 for spot nodes.",
    )
    instance_label: NodeLabel = Field(
        default=INSTANCE_LABEL, description="Label of nodes with their type; with `none`, pods select no type."
    )
    accelerator: bool = Field(
        default=True, description="Tell Flyte the kind of GPU, so that it selects nodes by its own label."
    )
    one_zone: bool = Field(default=True, description="Keep the pods of a job in one availability zone.")
    gang: GangScheduler | None = Field(
        default=None, description="Start the pods of a job together, with volcano, coscheduling or kueue."
    )
    queue: Queue = Field(default="", description="Kueue's LocalQueue for the pods of a job.")
    service_account_token: bool = Field(default=False, description="Let pods talk to the Kubernetes API.")
    raw_output: Annotated[Bucket | None, PATH_OR_URL] = Field(
        default=None,
        description="Bucket and prefix to which launch plans write models and data; Flyte's own if left out.",
    )
    notify: Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_addresses)] = Field(
        default=(), description="Mail addresses, separated by commas, that are notified when a scheduled run fails."
    )
    labels: Pairs = Field(default={}, description="Labels of scheduled runs and their pods: team=ml,cost-center=42.")
    nightly_config: str = Field(
        default="configs/llama2-7b-qlora.yaml", description="Run file of the launch plan nightly_qlora."
    )
    nightly_cron: Cron = Field(default="0 2 * * *", description="When it runs: five fields, in UTC.")
    weekly_config: str = Field(
        default="configs/llama2-7b-full.yaml", description="Run file of the launch plan weekly_full."
    )
    weekly_cron: Cron = Field(default="0 4 * * 6", description="When it runs: five fields, in UTC.")

    @property
    def node_label(self) -> str:
        """The label of nodes with their type; empty if there is none."""
        return "" if self.instance_label.lower() == "none" else self.instance_label


# Read when something is registered, and not needed in a pod.
REGISTRATION_ONLY = (
    "raw_output", "notify", "labels", "nightly_config", "nightly_cron", "weekly_config", "weekly_cron"
)  # fmt: skip
# Variables of local runs; only tasks.settings reads them, and they are never passed to a pod.
LOCAL_ONLY = (
    "THRIFTUNE_OUTPUTS",
    "THRIFTUNE_RUN_STAMP",
    "THRIFTUNE_WORDS_OF_WORKERS",
    "THRIFTUNE_METADATA_OF_TASK",
)


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return _OTHER_NAMES.get(field, f"{_PREFIX}{field.upper()}")


def read(environment: Mapping[str, str]) -> Platform:
    """Read the settings from an environment.

    Args:
        environment: As `os.environ`. An empty setting counts as left out.

    Raises:
        ConfigError: A setting has an invalid value, or a variable that begins with THRIFTUNE_ is not a setting; all
            problems at once.
    """
    fields = {variable(name): name for name in Platform.model_fields}
    given = {fields[name]: value.strip() for name, value in environment.items() if name in fields and value.strip()}
    problems = [_unknown(name, list(fields)) for name in environment if _is_stray(name, fields)]
    try:
        platform = Platform.model_validate(given)
    except ValidationError as error:
        problems += [_of_variable(problem) for problem in config_errors.explain(error, Platform)]
        raise ConfigError(problems) from None
    if (platform.gang == "kueue") != bool(platform.queue):
        message = "is not set, and kueue ignores pods without a queue." if not platform.queue else "is only for kueue."
        remedy = "Name the LocalQueue of the project's namespace, with THRIFTUNE_GANG=kueue; else leave it out."
        problems.append(Problem(variable("queue"), platform.queue, message, remedy))
    for field, place in places(platform):
        problems += with_user(variable(field), place)
    if problems:
        raise ConfigError(problems)
    return platform


def _is_stray(name: str, fields: dict[str, str]) -> bool:
    known = name in fields or name in LOCAL_ONLY or _SERVICE_LINK.search(name)
    return name.startswith(_PREFIX) and not known


def _unknown(name: str, known: list[str]) -> Problem:
    """The problem of a variable that is not a setting, without its value, which may be a misplaced token."""
    if any(word in name for word in ("TOKEN", "KEY", "SECRET", "PASSWORD")):
        remedy = f"Settings name Flyte secrets, as {variable('hub_secret')}=group/key; they never hold one."
        return Problem(name, "", "is not a setting.", remedy)
    close = difflib.get_close_matches(name, known, n=1)
    remedy = f"Did you mean {close[0]}?" if close else "docs/settings.md lists them."
    return Problem(name, "", "is not a setting.", remedy)


def _of_variable(problem: Problem) -> Problem:
    field = problem.field.split(".")[0]
    described = Platform.model_fields[field].description or ""
    value = "" if field.endswith("_secret") else problem.value  # it may be a token, instead of its name
    return Problem(variable(field), value, problem.message, problem.remedy or described)

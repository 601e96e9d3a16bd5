"""What a platform decides and a run does not: image, resources, secrets, cache versions, where local results go.

The only place besides thriftune/distributed.py that reads the environment. Values are read when tasks are declared:
when `pyflyte` runs or registers, and again in each pod, which gets the same values through `POD_ENVIRONMENT`.
"""

import logging
import os
import sys
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flytekit import Cache, FlyteContextManager, Resources, Secret, current_context
from flytekit.extras.accelerators import A10G, A100, A100_80GB, H100, L4, T4, V100, GPUAccelerator

from thriftune.training_plan import TrainingPlan

# Without it, `--image` of `pyflyte run` and `pyflyte register` decides.
IMAGE = os.environ.get("FLYTE_IMAGE")

# "group/key" of the Flyte secret that holds a hub token. Without it no task asks for a secret, because a pod that asks
# for one that does not exist never starts.
HUB_SECRET = os.environ.get("THRIFTUNE_HUB_SECRET", "")

CPU_TASK = Resources(cpu=os.environ.get("THRIFTUNE_CPU", "2"), mem=os.environ.get("THRIFTUNE_MEMORY", "8Gi"))
# Data is prepared by one process per core. A pod sees all cores of its machine, so the number is said, not counted.
PREPARE_CORES = int(os.environ.get("THRIFTUNE_PREPARE_CPU", "4"))
PREPARE_TASK = Resources(cpu=str(PREPARE_CORES), mem=os.environ.get("THRIFTUNE_PREPARE_MEMORY", "12Gi"))
# Merging holds one copy of the 16-bit model: 16 GiB for 7B, 150 GiB for 70B.
MERGE_TASK = Resources(cpu="4", mem=os.environ.get("THRIFTUNE_MERGE_MEMORY", "32Gi"))
GENERATE_TASK = Resources(
    cpu="4", mem=os.environ.get("THRIFTUNE_GENERATE_MEMORY", "14Gi"), gpu=os.environ.get("THRIFTUNE_GENERATE_GPUS", "1")
)
# For tasks that no plan sizes, as generate; a training pod gets what its plan says.
SHARED_MEMORY = os.environ.get("THRIFTUNE_SHARED_MEMORY", "16Gi")
# A file like thriftune/catalogue.yaml, or its s3:// or gs:// URL: node types and prices the planner chooses among.
CATALOGUE = os.environ.get("THRIFTUNE_CATALOGUE") or None
# How long a pod may go on after a notice that its node goes away; AWS gives spot nodes two minutes.
GRACE_SECONDS = int(os.environ.get("THRIFTUNE_GRACE_SECONDS", "120"))

RETRIES = int(os.environ.get("THRIFTUNE_RETRIES", "2"))

# Raised when what a task makes of the same inputs changes.
FETCH_CACHE = "2"
PREPARE_CACHE = "2"

_LOCAL_ONLY = ("THRIFTUNE_OUTPUTS", "THRIFTUNE_RUN_STAMP")
# For every pod: this module is read again there, and `@dynamic` declares its nodes from what it reads. Tokenizers warn
# when a process that used their threads forks, and DataLoader workers fork.
POD_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    **({"FLYTE_IMAGE": IMAGE} if IMAGE else {}),
    **{k: v for k, v in sorted(os.environ.items()) if k.startswith("THRIFTUNE_") and k not in _LOCAL_ONLY},
}
ACCELERATORS: dict[str, GPUAccelerator] = {
    "T4": T4,
    "V100": V100,
    "A10G": A10G,
    "L4": L4,
    "A100-40GB": A100,
    "A100-80GB": A100_80GB,
    "H100": H100,
}

# Flyte's local cache remembers the path of a directory, not whether it is still there, and outlives the checkout. Local
# runs reuse finished directories under outputs/cache instead, after looking.
os.environ.setdefault("FLYTE_LOCAL_CACHE_ENABLED", "false")
# Data is tokenized in processes of one thread each, and DataLoader workers fork, which tokenizers with threads warn of.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One stamp for all tasks of a local run, handed down to worker processes.
_STAMP = os.environ.setdefault("THRIFTUNE_RUN_STAMP", datetime.now(UTC).strftime("%Y%m%dT%H%M%S"))


def cache(version: str, *ignored_inputs: str) -> Cache:
    """Cache a task by its inputs; two runs that need the same thing at once make it once."""
    return Cache(version=version, serialize=True, ignored_inputs=ignored_inputs)


def hub_secrets() -> list[Secret]:
    """The secrets of a task that talks to the hub; empty where none is configured."""
    group, _, key = HUB_SECRET.partition("/")
    return [Secret(group=group, key=key)] if HUB_SECRET else []


def hub_token() -> str | None:
    """The hub token: from the configured Flyte secret, else from HF_TOKEN, else none. Never log it."""
    if HUB_SECRET:
        group, _, key = HUB_SECRET.partition("/")
        try:
            return str(current_context().secrets.get(group, key)).strip()
        except ValueError:  # flytekit's way to say that it is not mounted
            logging.getLogger(__name__).warning("The secret %s is not there; trying HF_TOKEN", HUB_SECRET)
    # Stripped: a newline at the end, as files have, would be an illegal header that the error text then quotes.
    return os.environ.get("HF_TOKEN", "").strip() or None


def hub_task(resources: Resources = CPU_TASK) -> dict[str, Any]:
    """Options of the tasks that run on a CPU node and may talk to the hub."""
    return {
        "container_image": IMAGE,
        "requests": resources,
        "retries": RETRIES,
        "environment": POD_ENVIRONMENT,
        "secret_requests": hub_secrets(),
    }


def node_resources(plan: TrainingPlan) -> Resources:
    """What each training pod asks for, as its plan says."""
    request = plan.request
    gpus = {"gpu": str(request.gpus)} if request.gpus else {}
    return Resources(cpu=str(request.cpus), mem=f"{request.memory_gib}Gi", **gpus)


def share_cpus(plan: TrainingPlan) -> None:
    """Let each process of a node use its share of the CPUs.

    With torchrun's default of one thread a process, DeepSpeed's CPU Adam, which steps offloaded states, uses one core.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, plan.request.cpus // plan.processes_per_node)))


def is_local() -> bool:
    """Whether outputs stay on this disk (`pyflyte run` without --remote), also inside worker processes."""
    access = FlyteContextManager.current_context().file_access
    return not access.is_remote(access.raw_output_prefix)


def result_place(run_name: str, what: str) -> Path:
    """Where a task writes a result: outputs/<run>/<start time>/<what> locally, a scratch folder in a pod."""
    if not is_local():
        return Path(tempfile.mkdtemp()) / what
    return _local_root() / run_name / _STAMP / what


def cached_place(what: str, key: str) -> Path:
    """Where a task writes what later runs can reuse: outputs/cache/<what>-<key> locally, a scratch folder in a pod."""
    if not is_local():
        return Path(tempfile.mkdtemp()) / what
    return _local_root() / "cache" / f"{what}-{key}"


def _local_root() -> Path:
    return Path(os.environ.get("THRIFTUNE_OUTPUTS", "outputs")).absolute()


def _configure_logging() -> None:
    """Show this package's progress lines on the terminal and in the pod's log, and silence its libraries' chatter."""
    package_logger = logging.getLogger("thriftune")
    if not package_logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        package_logger.addHandler(handler)
        package_logger.setLevel(logging.INFO)
        package_logger.propagate = False
    # The libraries warn of each other's renamed functions, some of them at every step. Nothing a user could act on.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(torch|transformers|peft|accelerate|bitsandbytes)\."
    )
    # That flytekit has no form field for a list inside a section; such keys come from the YAML file.
    logging.getLogger("flytekit").addFilter(lambda record: "cannot be converted to a literal type" not in record.msg)
    # That the model's configuration was given the special tokens of the tokenizer that is saved with it.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # accelerate does not see that the Trainer hands the accumulation to DeepSpeed, and says so in every run.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # That it found no faster kernel for 4-bit products on the CPU; its own is what the numbers here are measured with.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


_configure_logging()

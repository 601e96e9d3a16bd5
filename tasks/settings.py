"""The settings of this process, and everything else from its environment: tokens and local paths.

Only this module and thriftune/distributed.py read the environment. Values are read when tasks are declared: when
`pyflyte` runs or registers, and again in each pod, which gets the same values through `POD_ENVIRONMENT`.
"""

import functools
import itertools
import netrc
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from flytekit import FlyteContextManager, current_context
from flytekit.configuration import DataConfig
from flytekit.core.data_persistence import get_fsspec_storage_options

from tasks import platform
from thriftune.gpu_readings import has_driver_files
from thriftune.stores import access

PLATFORM = platform.read(os.environ)
# Root of the paths of run files that launch plans name.
CHECKOUT = Path(__file__).parent.parent

# torch's names of the settings of its allocator, the present one first.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def default_allocator() -> None:
    """Let torch's allocator use segments that grow, unless its settings are there already."""
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


_NOT_FOR_PODS = {*platform.LOCAL_ONLY, *(platform.variable(name) for name in platform.REGISTRATION_ONLY)}
_SETTINGS = {platform.variable(name) for name in type(PLATFORM).model_fields} - _NOT_FOR_PODS
# Environment of every pod, where this module is imported again and `@dynamic` declares its nodes from the settings.
# Tokenizers warn when a process that used their threads forks, and DataLoader workers fork.
POD_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    **{name: value for name, value in sorted(os.environ.items()) if name in _SETTINGS and value.strip()},
}

# Reach blob stores as flytekit does, whose variables (FLYTE_AWS_ENDPOINT and others) are all that many clusters set.
access.use({name: get_fsspec_storage_options(name, DataConfig.auto()) for name in ("s3", "gs", "abfs")})

# Flyte's local cache keeps the path of a directory, does not check that it still exists, and outlives the checkout.
# Instead, local runs reuse finished directories under outputs/cache after checking them.
os.environ.setdefault("FLYTE_LOCAL_CACHE_ENABLED", "false")
# Data is tokenized in processes with one thread each, and tokenizers with threads warn when DataLoader workers fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# bitsandbytes, which peft and the Trainer import, passes functions to torch's compiler when it is imported. Loading the
# compiler takes more than two seconds in each process, and on a CPU nothing here is compiled. DeepSpeed warns that it
# found no GPU unless it is told that there is none.
if not has_driver_files():
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
else:
    # Segments that grow keep what torch holds close to what it uses. Read when a process first uses a GPU; workers
    # inherit it. torch has two names for the variable, of which one may be set: then this is somebody's choice.
    default_allocator()
# Project for runs in Weights & Biases; transformers' own default is "huggingface".
os.environ.setdefault("WANDB_PROJECT", "thriftune")
# Which local run this process belongs to: its start time and a unique id. Removed from the environment, so that another
# run that this process starts does not inherit it.
_RUN_STAMP = "THRIFTUNE_RUN_STAMP"
_RUN = os.environ.pop(_RUN_STAMP, None) or f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}"
# Parts of a URL up to its bucket, where the index is if the execution is not in the prefix: s3:, nothing, bucket.
_BUCKET = 3
# Characters of the part of a raw output prefix that spreads outputs over a store: s3://bucket/data/ab/EXECUTION-n0-0.
_SHARD = 2
# File in the folder of a local run that says which run owns it.
_OWNER = ".run"
# Folder where a worker of a training leaves messages for its agent.
_WORDS = "THRIFTUNE_WORDS_OF_WORKERS"
# Where Flyte keeps the metadata of their task, which the Elastic plugin does not tell its workers.
_METADATA = "THRIFTUNE_METADATA_OF_TASK"

# Read by NVIDIA's container runtime, and by CUDA.
_SHOWING_GPUS = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")

WANDB_KEY = "WANDB_API_KEY"
_WANDB_HOST = "api.wandb.ai"


def hub_token() -> str | None:
    """The hub token: from the configured Flyte secret, else from HF_TOKEN, else None. Never log it."""
    if PLATFORM.hub_secret:
        group, _, key = PLATFORM.hub_secret.partition("/")
        try:
            return str(current_context().secrets.get(group, key)).strip() or None
        except ValueError:  # the secret is not mounted; the preflight refuses a run that needs it
            pass
    # Stripped: a trailing newline, as in files, would make an illegal header, which the error text then quotes.
    return os.environ.get("HF_TOKEN", "").strip() or None


def has_wandb_login() -> bool:
    """Whether this process can report to Weights & Biases: by a key, by a login on this machine, or offline."""
    if os.environ.get(WANDB_KEY, "").strip() or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    try:
        return netrc.netrc().authenticators(_WANDB_HOST) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def default_environment(variables: Mapping[str, str]) -> None:
    """Set variables that are not set yet, for this process and those it starts."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def run_handed_down(words: str, variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Tell processes that are started in this block, those of a training, which run they belong to.

    Args:
        words: Folder where these processes leave messages for this one.
        variables: What else they find in their environment.
    """
    metadata = current_context().output_metadata_prefix
    handed = {_RUN_STAMP: _RUN, _WORDS: words, **({_METADATA: str(metadata)} if metadata else {}), **variables}
    before = {name: os.environ[name] for name in handed if name in os.environ}
    os.environ.update(handed)
    try:
        yield
    finally:
        for name in handed:
            os.environ.pop(name, None)
        os.environ.update(before)


def nodes_of_job() -> str | None:
    """The least and the most nodes of the job that this pod belongs to, such as 2:2; None if it belongs to none.

    Source: kubeflow/training-operator, pkg/controller.v1/pytorch/elastic.go
    """
    return os.environ.get("PET_NNODES")


def shown_gpus() -> dict[str, str]:
    """The variables that show or hide GPUs, as far as they are set."""
    return {name: os.environ[name] for name in _SHOWING_GPUS if name in os.environ}


def words_of_workers() -> Path | None:
    """Folder where a worker of a training leaves messages for its agent; None in any other process."""
    folder = os.environ.get(_WORDS)
    return Path(folder) if folder else None


def lines_path(run_name: str) -> Path:
    """Folder for what a training tells of itself: the same for its workers and the process that waits for them.

    Args:
        run_name: Name of the run.
    """
    if is_local():
        return result_path(run_name, "training")
    return (words_of_workers() or Path(tempfile.mkdtemp())) / "lines"


def use_for_temporary_files(folder: Path) -> None:
    """Make this process, and those it starts, put temporary files into a folder."""
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = str(folder)


def is_local() -> bool:
    """Whether outputs stay on this disk (`pyflyte run` without --remote), also inside worker processes."""
    access = FlyteContextManager.current_context().file_access
    return not access.is_remote(access.raw_output_prefix)


def results_root() -> str:
    """URL below which the index of finished results is kept; empty in a local run, which looks at its own cache.

    It lies beside what Flyte writes of each execution, s3://bucket/metadata/propeller/<project>-<domain>-<execution>/...:
    there every execution of a project may write, whatever prefix it has for its own outputs.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/workflow/executor.go and nodes/task/handler.go
    """
    return "" if is_local() else f"{project_root()}/results"


def project_root() -> str:
    """URL of what all executions of a project share; not for a local run."""
    execution, (parts, own) = current_context().execution_id, _metadata_parts()
    above = parts[: _BUCKET if own is None else own]
    return "/".join([*above, "thriftune", f"{execution.project}-{execution.domain}"])


def output_url(name: str) -> str:
    """URL by which `pyflyte fetch` finds an output of the node that this task runs in, at the top of its workflow.

    A task that `@dynamic` declared writes to .../<execution>/<node of the workflow>/data/<attempt>/<its own node>/...

    Source: flyteorg/flyte, flytepropeller/pkg/apis/flyteworkflow/v1alpha1/node_status.go; flytekit.remote

    Args:
        name: Name of the output.

    Returns:
        The URL; empty in a local run, and where Flyte keeps its metadata in another way.
    """
    if is_local():
        return ""
    execution, (parts, own) = current_context().execution_id, _metadata_parts()
    if own is None or len(parts) < own + 2:
        return ""
    return f"flyte://v1/{execution.project}/{execution.domain}/{execution.name}/{parts[own + 1]}/o/{name}"


def is_of_another_run(url: str) -> bool:
    """Whether another execution made a result, which Flyte's cache then served to this one.

    Flyte gives an attempt <prefix>/<two characters>/<execution>-<node ids>-<attempt> for its outputs, below which
    `upload` makes a folder. Longer names are a digest without a dash, which tells nothing.

    Args:
        url: URL of the result.
    """
    attempt = url.rstrip("/").rsplit("/", 3)[-3:][0]
    return not is_local() and "-" in attempt and not attempt.startswith(f"{current_context().execution_id.name}-")


def _metadata_parts() -> tuple[list[str], int | None]:
    """The parts of the URL that Flyte keeps this task's metadata at, and which of them names the execution, if any."""
    context = current_context()
    prefix = context.output_metadata_prefix or os.environ.get(_METADATA, "")
    execution, parts = context.execution_id, str(prefix).split("/")
    names = (execution.name, f"{execution.project}-{execution.domain}-{execution.name}")
    return parts, next((number for number, part in enumerate(parts) if part in names), None)


def checkpoints_root() -> str:
    """URL below which the checkpoints of trainings are kept, one folder for each; not for a local run.

    Every execution that writes its outputs below the same prefix finds them there.

    Source: flyteorg/flyte, flyteplugins/go/tasks/pluginmachinery/ioutils/raw_output_path.go
    """
    execution = current_context().execution_id
    project = f"{execution.project}-{execution.domain}"
    if PLATFORM.checkpoints:
        return f"{PLATFORM.checkpoints.rstrip('/')}/{project}"
    prefix = str(FlyteContextManager.current_context().file_access.raw_output_prefix).rstrip("/")
    above, _, shard = prefix.rpartition("/")[0].rpartition("/")
    if len(shard) != _SHARD:
        above = f"{above}/{shard}"
    return f"{above}/thriftune/{project}/checkpoints"


def attempt_number() -> int:
    """Number of this attempt at its task, from 0, as Flyte counts."""
    return int(os.environ.get("FLYTE_ATTEMPT_NUMBER", "0"))


def node_of_execution() -> str:
    """Which node of its execution this task is, such as n3-0-dn2; empty where Flyte shortens the name.

    The number in it is that of the attempt at the dynamic node around it: attempts of another one are others.
    """
    prefix = str(FlyteContextManager.current_context().file_access.raw_output_prefix).rstrip("/")
    execution, _, attempt = prefix.rpartition("/")[2].rpartition("-")
    name = f"{current_context().execution_id.name}-"
    return execution.removeprefix(name) if attempt == str(attempt_number()) and execution.startswith(name) else ""


def run_stamp() -> str:
    """What tells a local run from every other, in all of its processes."""
    return _RUN


def result_path(run_name: str, what: str) -> Path:
    """Where a task writes a result: outputs/<run>/<start time>/<what> locally, a scratch folder in a pod."""
    if not is_local():
        return Path(tempfile.mkdtemp()) / what
    return _folder_of_run(local_root() / run_name, _RUN) / what


def cache_path(what: str, key: str) -> Path:
    """Where a task writes what later runs can reuse: outputs/cache/<what>-<key> locally, a scratch folder in a pod."""
    if not is_local():
        return Path(tempfile.mkdtemp()) / what
    return local_root() / "cache" / f"{what}-{key}"


@functools.cache
def _folder_of_run(parent: Path, run: str) -> Path:
    """The folder of a local run and of no other: named by its start time, with a number if that name is taken.

    The first process of the run that asks creates it.

    Args:
        parent: Folder of all runs with one name.
        run: The run, as in `_RUN`.
    """
    began = run.partition("-")[0]
    names = itertools.chain([began], (f"{began}-{number}" for number in itertools.count(2)))
    return next(folder for name in names if _is_taken_by(folder := parent / name, run))


def _is_taken_by(folder: Path, run: str) -> bool:
    """Whether a folder belongs to a run. If it does not exist, it is created for the run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: no process sees a folder without its owner, and only one of several can succeed.
    made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    made.chmod(0o755)  # mkdtemp makes directories for their owner only
    (made / _OWNER).write_text(run, encoding="utf-8")
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not folder.exists():
            raise
        owner = folder / _OWNER
        return owner.is_file() and owner.read_text(encoding="utf-8") == run
    return True


def local_root() -> Path:
    """The folder to which local runs write."""
    return Path(os.environ.get("THRIFTUNE_OUTPUTS", "outputs")).absolute()

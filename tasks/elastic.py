"""Elastic training whose number of processes per node comes from the plan, started again only where that helps.

Flyte fixes task type and node count when a task is declared; the plugin starts `task_config.nproc_per_node` workers,
and reads that from the declaration too. One declaration per node count *and* GPU count would be dozens of tasks, and
overriding `task_config` on a node leaks to every other node of the workflow. So: tasks are declared per node count, and
the number of workers is read from the `plan` argument when the task starts. See docs/adr/0002-elastic-by-plan.md.

torchrun's agent starts a failed group of workers again, whatever it failed of, and ends without a word when it gets a
SIGTERM. What must not be started again, an error of the user's or a node that goes away, a worker tells its agent by a
file and a signal; and SIGTERM is handed on to the workers, which save what they trained. See docs/resilience.md.
"""

import dataclasses
import functools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil
from flytekit import PythonFunctionTask
from flytekit.exceptions.user import FlyteRecoverableException, FlyteUserRuntimeException
from flytekit.extend import TaskPlugins
from flytekitplugins.kfpytorch.task import Elastic, PytorchElasticFunctionTask

from tasks import interruption, settings
from tasks.failures import ExplainsErrors
from tasks.image import RequiresImage
from tasks.interruption import EndsWhenInterrupted
from tasks.settings import PLATFORM
from thriftune import errors
from thriftune.errors import PreemptedError, ThriftuneError, UserError
from thriftune.planning.node_environment import node_environment
from thriftune.training.guards.faults import kind_of_text

_Result = TypeVar("_Result")

# What a worker has to say goes by this signal, which neither torch nor flytekit uses.
_SPOKEN = signal.SIGUSR2
# Longer than an agent takes to end its workers after it was told.
_UNTIL_ENDED_SECONDS = 120
# Longer than an agent takes to hear that another worker spoke.
_UNTIL_HEARD_SECONDS = 1
# Without it torch 2.13 keeps one store for all starts of a group, and one that is started again finds the addresses of
# the processes before it there: gloo is refused, NCCL waits. (torch, elastic/rendezvous/dynamic_rendezvous.py)
_NEW_STORE_FOR_EACH_START = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# What torch's agent listens to by itself: all it does by default, but for SIGTERM and, in a local run, Ctrl-C, which
# is heard elsewhere (tasks/interruption.py).
_SIGNALS_OF_AGENT = "SIGHUP,SIGQUIT"
# In the folder that workers say something in.
_SAID = "said.json"


@dataclass
class PlannedElastic(Elastic):
    """Elastic for a task with the arguments `config` (RunConfig) and `plan` (TrainingPlan)."""


class _WorkerSpokeError(Exception):
    """A worker told its agent why the attempt is over."""


class PlannedElasticTask(EndsWhenInterrupted, RequiresImage, ExplainsErrors, PytorchElasticFunctionTask):
    """Runs the task function in as many worker processes as its plan says."""

    def __init__(self, task_config: Elastic, task_function: Callable[..., Any], **kwargs: Any) -> None:
        """Declare it as the plugin does, without torch, which the plugin imports to parse a number of nodes.

        torch takes a third of the time of every `--help`, plan and registration. What is registered is held by
        tests/specification.
        """
        nodes = task_config.nnodes
        kind = self._ELASTIC_TASK_TYPE_STANDALONE if nodes == 1 else self._ELASTIC_TASK_TYPE
        PythonFunctionTask.__init__(
            self, task_config=task_config, task_type=kind, task_function=task_function, task_type_version=1, **kwargs
        )
        self.min_nodes = self.max_nodes = nodes
        self.rdzv_backend = "c10d"

    def execute(self, **kwargs: Any) -> Any:
        """Start the workers of this node and wait for them.

        Raises:
            FlyteRecoverableException: Another attempt may succeed: the nodes did not find each other, or one goes away.
            UserError: What a worker found wrong with the run; it is not tried again.
        """
        from torch.distributed.elastic.rendezvous import RendezvousError

        declared: Any = self.task_config
        plan = kwargs["plan"]
        self._task_config = dataclasses.replace(declared, nproc_per_node=plan.processes_per_node)
        if plan.hardware.is_gpu:
            settings.default_environment(node_environment(plan, plan.processes_per_node, plan.nodes))
        settings.default_environment(_NEW_STORE_FOR_EACH_START)
        try:
            with (
                interruption.training(kwargs["config"], in_workers=True),
                tempfile.TemporaryDirectory() as words,
                settings.run_handed_down(words),
            ):
                try:
                    with _listening():
                        return super().execute(**kwargs)
                except _WorkerSpokeError:
                    _raise_what_was_said(Path(words))
        except RendezvousError as error:  # a node that has not come may come to the next attempt
            why = f"after {PLATFORM.rendezvous_seconds} s at most: {type(error).__name__} {error}"
            raise FlyteRecoverableException(f"The nodes of the job did not find each other {why}") from error
        except FlyteUserRuntimeException as error:  # what is left when the group was started again in vain
            if kind_of_text(str(error)) == "transient":
                raise FlyteRecoverableException(str(error)) from error
            raise
        finally:
            self._task_config = declared


TaskPlugins.register_pythontask_plugin(PlannedElastic, PlannedElasticTask)


def elastic(nodes: int) -> PlannedElastic:
    """The configuration of a task on a number of nodes.

    The pods of a job wait for each other, while the autoscaler adds machines and images are pulled, for
    `rendezvous_seconds` (1800); then the attempt fails and is tried again. With the default of two retries, nodes that
    never come cost 3 x 1800 s of those that did.
    """
    seconds = PLATFORM.rendezvous_seconds
    return PlannedElastic(
        nnodes=nodes,
        max_restarts=PLATFORM.restarts,
        increase_shared_mem=False,  # the pod template owns /dev/shm
        rdzv_configs={
            "timeout": seconds,
            "join_timeout": seconds,
            # The store's own default of 60 s is shorter than the start of a pod.
            "read_timeout": seconds,
        },
    )


def in_worker(work: Callable[[], _Result]) -> _Result:
    """Do the work of a worker process; end the attempt where starting the group again would change nothing.

    Args:
        work: Trains.
    """
    interruption.left_to_parent()
    try:
        return work()
    except (UserError, PreemptedError) as error:
        _tell_agent(error)
        raise


def _tell_agent(error: ThriftuneError) -> None:
    """Leave the error where the agent of this node looks for it, and wake the agent."""
    folder = settings.words_of_workers()
    if folder is None:  # no agent that listens
        return
    # The agent ends its workers with a SIGTERM, and waits for them; there is nothing left here to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (folder / _SAID).exists():  # another one told it, and its SIGTERM may have been taken for notice already
        time.sleep(_UNTIL_HEARD_SECONDS)
        return
    partial = folder / f"{os.getpid()}"
    partial.write_text(errors.to_json(error), encoding="utf-8")
    partial.replace(folder / _SAID)
    os.kill(os.getppid(), _SPOKEN)
    time.sleep(_UNTIL_ENDED_SECONDS)


def _raise_what_was_said(folder: Path) -> NoReturn:
    error = errors.from_json((folder / _SAID).read_text(encoding="utf-8"))
    if isinstance(error, PreemptedError):
        raise FlyteRecoverableException(str(error)) from error
    raise error


@contextmanager
def _listening() -> Iterator[None]:
    """Hand a SIGTERM on to the workers while they work, and hear what they say."""

    def hand_on(number: int, _: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    def hear(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # every worker says it; once is enough
        raise _WorkerSpokeError

    from torch.distributed.launcher import api as launcher

    configuration = launcher.LaunchConfig
    # The plugin takes the configuration from there when it starts, and has no argument for the signals.
    launcher.LaunchConfig = functools.partial(configuration, signals_to_handle=_SIGNALS_OF_AGENT)  # type: ignore[misc,assignment]
    # An interrupted local run is ended by who hears that, which gives the workers notice first.
    before = None if interruption.is_heard() else signal.signal(signal.SIGTERM, hand_on)
    signal.signal(_SPOKEN, hear)
    try:
        yield
    finally:
        launcher.LaunchConfig = configuration  # type: ignore[misc]
        # Of the other signal some workers' may still come: its default would end this process.
        signal.signal(_SPOKEN, signal.SIG_IGN)
        if before is not None:
            signal.signal(signal.SIGTERM, before)

"""Elastic training whose number of processes per node comes from the plan, started again only where that helps.

Flyte fixes task type and node count when a task is declared, and the plugin takes the number of workers from the
declaration too (`task_config.nproc_per_node`). One declaration per node count *and* GPU count would be dozens of tasks,
and overriding `task_config` on a node leaks to every other node of the workflow. So tasks are declared per node count,
and the number of workers is read from the `plan` argument when the task starts. See docs/adr/0002-elastic-by-plan.md.

torchrun's agent starts a failed group of workers again whatever the reason, and ends silently when it gets a SIGTERM.
If the group must not be started again, because of a user error or a node that is going away, a worker tells its agent
by a file and a signal. A SIGTERM is passed on to the workers, which save what they trained. See docs/resilience.md.
"""

import dataclasses
import functools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil
from flytekit import PythonFunctionTask
from flytekit.exceptions.user import FlyteRecoverableException, FlyteUserRuntimeException
from flytekit.extend import TaskPlugins
from flytekitplugins.kfpytorch.task import Elastic, PytorchElasticFunctionTask

from tasks import checkpoints, interruption, live, pod_check, settings
from tasks.connections import ClosesConnections
from tasks.failures import ExplainsErrors
from tasks.image import RequiresImage
from tasks.interruption import EndsWhenInterrupted
from tasks.settings import PLATFORM
from thriftune import errors
from thriftune.errors import EndedAtOnceError, PreemptedError, ThriftuneError, UserError
from thriftune.planning.node_environment import node_environment
from thriftune.training.guards.faults import kind_of_text

_Result = TypeVar("_Result")

# A worker signals its agent with this, which neither torch nor flytekit uses.
_SPOKEN = signal.SIGUSR2
# Longer than an agent needs to end its workers after the signal.
_UNTIL_ENDED_SECONDS = 120
# Longer than an agent needs to handle the signal of another worker.
_UNTIL_HEARD_SECONDS = 1
# Without it torch 2.13 keeps one store for all starts of a group, and a restarted group finds the addresses of dead
# processes there: gloo is refused, NCCL waits. (torch, elastic/rendezvous/dynamic_rendezvous.py)
_NEW_STORE_FOR_EACH_START = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# Signals that torch's agent handles itself: its defaults without SIGTERM, and without SIGINT, since in a local run
# Ctrl-C is handled elsewhere (tasks/interruption.py).
_SIGNALS_OF_AGENT = "SIGHUP,SIGQUIT"
# Files in the folder where workers leave messages: the message; and that the agent's pod was told to end.
_SAID, _TOLD = "said.json", "told"


@dataclass
class PlannedElastic(Elastic):
    """Elastic for a task with the arguments `config` (RunConfig) and `plan` (TrainingPlan).

    One that saves checkpoints, which its attempts go on from, also has `cache_key`.
    """


class _WorkerSpokeError(Exception):
    """A worker told its agent why the attempt has to end."""


class _RunsPlannedWorkers(PytorchElasticFunctionTask):
    """Runs the task function in as many worker processes as its plan says."""

    def __init__(self, task_config: Elastic, task_function: Callable[..., Any], **kwargs: Any) -> None:
        """Declare the task as the plugin does, but without torch, which the plugin imports to parse a number of nodes.

        torch takes a third of the time of every `--help`, plan and registration. tests/specification checks that the
        registered task is the same.
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

        Args:
            **kwargs: The task's inputs, among them `config` and `plan`, and `cache_key` if it saves checkpoints.

        Raises:
            FlyteRecoverableException: Another attempt may succeed: the nodes did not find each other, or one is going
                away.
            UserError: A worker found an error in the run, or this pod is not what was planned; neither is tried again.
        """
        pod_check.require_job(self.task_config.nnodes)
        key = kwargs.get("cache_key")
        with checkpoints.attempt(key) if key is not None else nullcontext():
            return self._run_workers(**kwargs)

    def _run_workers(self, **kwargs: Any) -> Any:
        from torch.distributed.elastic.rendezvous import RendezvousError

        declared: Any = self.task_config
        plan, key = kwargs["plan"], kwargs.get("cache_key")
        pod_check.require_planned(plan)
        self._task_config = dataclasses.replace(declared, nproc_per_node=plan.processes_per_node)
        if plan.hardware.is_gpu:
            settings.default_environment(node_environment(plan, plan.processes_per_node, plan.nodes))
        settings.default_environment(_NEW_STORE_FOR_EACH_START)
        try:
            with (
                interruption.training(kwargs["config"], in_workers=True),
                tempfile.TemporaryDirectory() as words,
                settings.run_handed_down(words),
                live.watching(kwargs["config"], plan, key) if key is not None else nullcontext(),
            ):
                try:
                    with _listening(Path(words)):
                        return super().execute(**kwargs)
                except _WorkerSpokeError:
                    _raise_what_was_said(Path(words))
        except RendezvousError as error:  # a missing node may join the next attempt
            why = f"after {PLATFORM.rendezvous_seconds} s at most: {type(error).__name__} {error}"
            raise FlyteRecoverableException(f"The nodes of the job did not find each other {why}") from error
        except FlyteUserRuntimeException as error:  # restarting the group did not help
            if kind_of_text(str(error)) == "transient":
                raise FlyteRecoverableException(str(error)) from error
            raise
        finally:
            self._task_config = declared


class PlannedElasticTask(EndsWhenInterrupted, RequiresImage, ClosesConnections, ExplainsErrors, _RunsPlannedWorkers):
    """A task on the nodes of a plan. What the mixins do is around all of it, its checkpoints and its pod's check."""


TaskPlugins.register_pythontask_plugin(PlannedElastic, PlannedElasticTask)


def elastic(nodes: int) -> PlannedElastic:
    """The configuration of a task on a number of nodes.

    While the autoscaler adds machines and images are pulled, the pods of a job wait for each other for
    `rendezvous_seconds` (1800); then the attempt fails and is tried again. Nodes that never join cost the others 2 x
    1800 s: after two attempts without a new checkpoint there is no other.
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
    """Do the work of a worker process; end the attempt if starting the group again would not help.

    Args:
        work: The training.
    """
    interruption.left_to_parent()
    try:
        if _is_told():  # before this worker could listen; its agent started it again
            raise PreemptedError("The node is going away; this worker had not begun.")
        return work()
    except EndedAtOnceError as error:
        # Also when the agent ends its workers to start them again, which it then must not be kept from.
        if _is_told(_UNTIL_HEARD_SECONDS):
            _tell_agent(error)
        raise
    except (UserError, PreemptedError) as error:
        _tell_agent(error)
        raise


def _is_told(seconds: float = 0.0) -> bool:
    """Whether the agent's pod was told to end, which the agent writes down before it passes that on.

    Args:
        seconds: Time to wait for it, where both were told by somebody else.
    """
    folder, until = settings.words_of_workers(), time.monotonic() + seconds
    if folder is None:
        return False
    while not (found := (folder / _TOLD).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _tell_agent(error: ThriftuneError) -> None:
    """Write the error where the agent of this node looks for it, and signal the agent."""
    folder = settings.words_of_workers()
    if folder is None:  # there is no agent that listens
        return
    # The agent ends its workers with a SIGTERM, and waits for them. This worker has nothing left to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (folder / _SAID).exists():  # another worker told it, and its SIGTERM may already have been taken for a notice
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
def _listening(words: Path) -> Iterator[None]:
    """While workers run, pass a SIGTERM on to them, and handle their signals.

    Args:
        words: Folder for messages between this process and its workers.
    """

    def hand_on(number: int, _: FrameType | None) -> None:
        (words / _TOLD).touch()
        for child in psutil.Process().children():
            child.send_signal(number)

    def hear(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # every worker sends it; once is enough
        raise _WorkerSpokeError

    from torch.distributed.launcher import api as launcher

    configuration = launcher.LaunchConfig
    # The plugin takes this class from there when it starts, and has no argument for the signals.
    launcher.LaunchConfig = functools.partial(configuration, signals_to_handle=_SIGNALS_OF_AGENT)  # type: ignore[misc,assignment]
    # tasks/interruption.py ends an interrupted local run, after giving the workers notice.
    before = None if interruption.is_listening() else signal.signal(signal.SIGTERM, hand_on)
    signal.signal(_SPOKEN, hear)
    try:
        yield
    finally:
        launcher.LaunchConfig = configuration  # type: ignore[misc]
        # More workers may still send their signal, whose default action would end this process.
        signal.signal(_SPOKEN, signal.SIG_IGN)
        if before is not None:
            signal.signal(signal.SIGTERM, before)

"""Elastic training whose number of processes per node comes from the plan.

Flyte fixes task type and node count when a task is declared; the plugin starts `task_config.nproc_per_node` workers,
and reads that from the declaration too. One declaration per node count *and* GPU count would be dozens of tasks, and
overriding `task_config` on a node leaks to every other node of the workflow. So: tasks are declared per node count, and
the number of workers is read from the `plan` argument when the task starts. See docs/adr/0002-elastic-by-plan.md.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.extend import TaskPlugins
from flytekitplugins.kfpytorch.task import Elastic, PytorchElasticFunctionTask
from torch.distributed.elastic.rendezvous import RendezvousError

from tasks import settings
from tasks.image import RequiresImage
from tasks.settings import PLATFORM
from thriftune.node_environment import node_environment


@dataclass
class PlannedElastic(Elastic):
    """Elastic for a task with an argument `plan` (TrainingPlan)."""


class PlannedElasticTask(RequiresImage, PytorchElasticFunctionTask):
    """Runs the task function in as many worker processes as its plan says."""

    def execute(self, **kwargs: Any) -> Any:
        """Start the workers of this node and wait for them."""
        declared: Any = self.task_config
        plan = kwargs["plan"]
        self._task_config = dataclasses.replace(declared, nproc_per_node=plan.processes_per_node)
        if plan.hardware.is_gpu:
            settings.default_environment(node_environment(plan, plan.processes_per_node, plan.nodes))
        try:
            return super().execute(**kwargs)
        except RendezvousError as error:  # a node that has not come may come to the next attempt
            why = f"after {PLATFORM.rendezvous_seconds} s at most: {type(error).__name__} {error}"
            raise FlyteRecoverableException(f"The nodes of the job did not find each other {why}") from error
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
        increase_shared_mem=False,  # the pod template owns /dev/shm
        rdzv_configs={
            "timeout": seconds,
            "join_timeout": seconds,
            # The store's own default of 60 s is shorter than the start of a pod.
            "read_timeout": seconds,
        },
    )

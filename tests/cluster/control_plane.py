"""All of the control plane together: store, image, registry, engine and server."""

import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from flyteidl.admin.execution_pb2 import Execution, ExecutionCreateRequest, ExecutionMetadata, ExecutionSpec
from flyteidl.admin.launch_plan_pb2 import LaunchPlan
from flyteidl.core import execution_pb2 as phases
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flyteidl.core.literals_pb2 import LiteralMap
from starting import Fresh, Warm

from cluster import image, records, server
from cluster.description import CLUSTER, Description
from cluster.engine import Engine
from cluster.pods import MACHINE, Pods
from cluster.records import LOCK, NodeRecord, Run
from cluster.registry import IncompleteInputsError, Registry, found
from cluster.store import Store

# What tasks/settings.py sets before libraries are imported.
_SET_BY_TASKS = {"TORCHDYNAMO_DISABLE": "1"}
# Variables whose value the libraries only print when they are imported.
_ONLY_SAID = ("WANDB_MODE",)
_SUCCEEDED, _FAILED = phases.NodeExecution.SUCCEEDED, phases.NodeExecution.FAILED


class ControlPlane:
    """All of it: store, registry, engine and server.

    Example:
        with ControlPlane(folder) as cluster: subprocess.run(["pyflyte", "run", "--remote", ...], env=cluster.client)
    """

    def __init__(self, folder: Path, description: Description = CLUSTER, libraries: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            folder: Of its own.
            description: What the cluster is like.
            libraries: What pods find in memory: they are forked. If there are none, each is started anew.
        """
        self.store = Store(description.bucket)
        self.registry = Registry(description)
        self.runs: dict[str, Run] = {}
        self.calls: list[str] = []
        (folder / "logs").mkdir(parents=True)
        variables = {**self.store.environment, **description.variables}
        programs = image.build(folder / "image")
        self._starts = warm_pods(programs, libraries, variables, folder / "warm") if libraries else Fresh()
        self.pods = Pods(programs, description, variables, folder / "logs", self._starts)
        self._engine = Engine(self.store, self.pods)
        self._server, port = server.serve(self)
        self.config = folder / "flyte.yaml"
        self.config.write_text(f"admin:\n  endpoint: dns:///127.0.0.1:{port}\n  insecure: true\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)
        self.pods.close()
        self._starts.close()
        self.store.close()

    @property
    def client(self) -> dict[str, str]:
        """What the command lines and FlyteRemote need in their environment."""
        return {"FLYTECTL_CONFIG": str(self.config), **self.store.environment}

    def execute(
        self,
        request: ExecutionCreateRequest,
        known: Mapping[str, LiteralMap] = {},
        checkpoints: Mapping[str, str] = {},
    ) -> WorkflowExecutionIdentifier:
        """Begin an execution of a launch plan.

        Args:
            request: What is asked for.
            known: Outputs of nodes that are not run, by id.
            checkpoints: Where nodes had their checkpoints in an execution that this one recovers, by id.
        """
        plan = found(self.registry.launch_plans, request.spec.launch_plan)
        workflow = found(self.registry.workflows, plan.spec.workflow_id)
        run = Run(Execution(spec=request.spec), _inputs(plan, request.inputs), known, checkpoints)
        name = request.name or f"a{uuid.uuid4().hex[:19]}"
        identifier = WorkflowExecutionIdentifier(project=request.project, domain=request.domain, name=name)
        run.execution.id.CopyFrom(identifier)
        run.execution.closure.workflow_id.CopyFrom(plan.spec.workflow_id)
        run.execution.closure.phase = phases.WorkflowExecution.RUNNING
        for stamp in ("created_at", "started_at", "updated_at"):
            getattr(run.execution.closure, stamp).GetCurrentTime()
        if not run.execution.spec.raw_output_data_config.output_location_prefix:
            run.execution.spec.raw_output_data_config.CopyFrom(plan.spec.raw_output_data_config)
        self.runs[name] = run
        self._engine.start(run, workflow.closure.compiled_workflow)
        return identifier

    def recover(self, of: Run, name: str = "") -> WorkflowExecutionIdentifier:
        """Begin an execution with what the nodes gave that succeeded in another one.

        A node that failed gets the prefix of its checkpoints; not that of an aborted execution.

        Args:
            of: The other execution.
            name: The name of the new one; empty for any.
        """
        known = {node_id: node.outputs for node_id, node in of.nodes.items() if _phase(node) == _SUCCEEDED}
        failed = {node_id: node.checkpoint for node_id, node in of.nodes.items() if _phase(node) == _FAILED}
        own = of.execution.id
        request = ExecutionCreateRequest(project=own.project, domain=own.domain, name=name, inputs=of.inputs)
        request.spec.CopyFrom(of.execution.spec)
        request.spec.metadata.mode = ExecutionMetadata.RECOVERED
        request.spec.metadata.reference_execution.CopyFrom(own)
        return self.execute(request, known, {} if of.is_aborted else failed)

    def terminate(self, run: Run, cause: str) -> None:
        """End an execution that runs, and its pods.

        Args:
            run: The execution.
            cause: Why.
        """
        records.abort(run, cause)
        threading.Thread(target=self.pods.end, args=(run.name,), daemon=True).start()

    def run_dynamic_part(self, of: Run, inputs: LiteralMap) -> str:
        """Execute a workflow again, with what an earlier execution's nodes gave in place of all but the dynamic ones.

        Args:
            of: The earlier execution.
            inputs: The inputs of the new one.

        Returns:
            The name of the execution.
        """
        known = {name: node.outputs for name, node in of.nodes.items() if not node.parent and node.dynamic is None}
        own = of.execution.id
        request = ExecutionCreateRequest(project=own.project, domain=own.domain, spec=of.execution.spec, inputs=inputs)
        return str(self.execute(request, known).name)

    def fire(self, name: str) -> str:
        """Do what the scheduler does when the time of an active launch plan has come.

        Returns:
            The name of the execution.
        """
        with LOCK:
            (plan,) = [p for p in self.registry.active_plans() if p.id.name == name]
            assert plan.spec.entity_metadata.schedule.WhichOneof("ScheduleExpression"), f"{name} has no schedule"
            spec = ExecutionSpec(launch_plan=plan.id, metadata=ExecutionMetadata(mode=ExecutionMetadata.SCHEDULED))
            request = ExecutionCreateRequest(project=plan.id.project, domain=plan.id.domain, spec=spec)
            return str(self.execute(request).name)


def warm_pods(programs: Path, libraries: Sequence[str], variables: Mapping[str, str], folder: Path) -> Warm:
    """What pods are forked from.

    Args:
        programs: The bin directory of the image.
        libraries: What they find in memory.
        variables: What is the same in all of their environments.
        folder: Of its own.
    """
    environment = {"PATH": image.path(programs), **variables, **MACHINE, **_SET_BY_TASKS}
    return Warm(programs / "python", libraries, environment, folder, may_differ=[*_SET_BY_TASKS, *_ONLY_SAID])


def _phase(node: NodeRecord) -> int:
    return int(node.execution.closure.phase)


def _inputs(plan: LaunchPlan, given: LiteralMap) -> LiteralMap:
    """The inputs of an execution: what is fixed, else what is given, else the default."""
    defaults = {name: p.default for name, p in plan.spec.default_inputs.parameters.items() if p.HasField("default")}
    literals = {**defaults, **given.literals, **plan.spec.fixed_inputs.literals}
    missing = set(plan.closure.expected_inputs.parameters) - set(literals)
    if missing:
        raise IncompleteInputsError(f"inputs without a value: {', '.join(sorted(missing))}")
    return LiteralMap(literals=literals)

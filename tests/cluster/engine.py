"""The engine: it walks a workflow, runs its tasks in pods and hands their outputs on.

Nodes run one after another in an order that their promises allow; Flyte would run those that are ready at once.
"""

import itertools
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from flyteidl.core.catalog_pb2 import CACHE_DISABLED, CACHE_HIT, CACHE_POPULATED
from flyteidl.core.compiler_pb2 import CompiledWorkflowClosure
from flyteidl.core.dynamic_job_pb2 import DynamicJobSpec
from flyteidl.core.errors_pb2 import ContainerError, ErrorDocument
from flyteidl.core.execution_pb2 import ExecutionError
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import Node, WorkflowTemplate

from cluster import array, records
from cluster.cache import Cache
from cluster.description import UnschedulableError
from cluster.literals import INPUTS, promised, resolve
from cluster.pods import Place, Pods
from cluster.records import NodeRecord, Run
from cluster.registry import Key, closure, key
from cluster.store import Store

# Flyte's max-node-retries-system-failures.
_SYSTEM_RETRIES = 3
_JOBS = "pytorch"


class AbortedError(Exception):
    """The execution was ended from outside."""


class NodeFailedError(Exception):
    """A node failed for good."""

    def __init__(self, error: ExecutionError) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.error = error


@dataclass(frozen=True)
class _Scope:
    """What a node can refer to, and where it stands.

    Attributes:
        run: The execution.
        tasks: The tasks of the workflow.
        workflows: Its subworkflows.
        parent: The id of the node that the walk is inside of.
        prefix: What the ids of the nodes begin with.
    """

    run: Run
    tasks: dict[Key, TaskTemplate] = field(default_factory=dict)
    workflows: dict[Key, WorkflowTemplate] = field(default_factory=dict)
    parent: str = ""
    prefix: str = ""

    def within(self, parent: str, attempt: int = 0) -> "_Scope":
        return replace(self, parent=parent, prefix=f"{parent}-{attempt}-")


def _scope(run: Run, compiled: CompiledWorkflowClosure) -> _Scope:
    return _Scope(
        run,
        {key(task.template.id): task.template for task in compiled.tasks},
        {key(workflow.template.id): workflow.template for workflow in compiled.sub_workflows},
    )


class Engine:
    """Runs executions, each in a thread."""

    def __init__(self, store: Store, pods: Pods) -> None:
        self._store = store
        self._pods = pods
        self._cache = Cache()

    def start(self, run: Run, workflow: CompiledWorkflowClosure) -> None:
        """Begin an execution."""
        threading.Thread(target=self._execute, args=(run, workflow), name=run.name, daemon=True).start()

    def _execute(self, run: Run, workflow: CompiledWorkflowClosure) -> None:
        try:
            records.succeed(run, self._walk(_scope(run, workflow), workflow.primary.template, run.inputs))
        except NodeFailedError as failure:
            records.fail(run, failure.error)
        except AbortedError:
            pass  # recorded where it was ended
        except Exception as bug:
            records.fail(run, ExecutionError(code="TestControlPlane", message=repr(bug), kind=ExecutionError.SYSTEM))
            raise

    def _walk(self, scope: _Scope, template: WorkflowTemplate, inputs: LiteralMap) -> LiteralMap:
        """Run the nodes of a workflow, and give its outputs."""
        values = {INPUTS: inputs}
        try:
            for node in _in_order(list(template.nodes)):
                values[node.id] = self._run_node(scope, node, resolve(node.inputs, values))
        except NodeFailedError:
            if template.HasField("failure_node"):  # a workflow's `on_failure`
                with suppress(NodeFailedError):
                    self._run_node(scope, template.failure_node, resolve(template.failure_node.inputs, values))
            raise
        return resolve(template.outputs, values)

    def _run_node(self, scope: _Scope, node: Node, inputs: LiteralMap) -> LiteralMap:
        node_id = scope.prefix + node.id
        record = scope.run.begin_node(node_id, node.id, scope.parent, inputs)
        with _recorded(scope.run, record):
            if node_id in scope.run.known:
                return records.succeed(record, scope.run.known[node_id])
            if node.WhichOneof("target") == "task_node":
                task = scope.tasks[key(node.task_node.reference_id)]
                return records.succeed(record, self._run_cached(scope, record, node, task))
            if node.WhichOneof("target") == "array_node":
                record.execution.metadata.is_array = True
                return records.succeed(record, self._run_array(scope, node_id, node, inputs))
            if node.workflow_node.HasField("sub_workflow_ref"):
                record.execution.metadata.is_parent_node = True
                template = scope.workflows[key(node.workflow_node.sub_workflow_ref)]
                return records.succeed(record, self._walk(scope.within(node_id), template, inputs))
            raise NotImplementedError(f"{node_id} is a {node.WhichOneof('target')}")

    def _run_array(self, scope: _Scope, node_id: str, node: Node, inputs: LiteralMap) -> LiteralMap:
        """Run one node for each item, as many at a time as it allows; each has its own cache entry and attempts."""
        given = array.Array(node.array_node, inputs)
        task = array.of_one(scope.tasks[key(node.array_node.node.task_node.reference_id)])

        def run(index: int) -> LiteralMap:
            record = scope.run.begin_node(f"{node_id}-n{index}", node.id, node_id, given.inputs_of(index))
            record.part = records.Part(index, inputs)
            with _recorded(scope.run, record):
                return records.succeed(record, self._run_cached(scope, record, node.array_node.node, task))

        return given.run(run, NodeFailedError)

    def _run_cached(self, scope: _Scope, record: NodeRecord, node: Node, task: TaskTemplate) -> LiteralMap:
        status = record.execution.closure.task_node_metadata
        status.cache_status = CACHE_DISABLED
        if not task.metadata.discoverable:
            return self._run_task(scope, record, node, task)
        status.catalog_key.dataset_id.name = f"flyte_task-{task.id.name}"
        overwrites = scope.run.execution.spec.overwrite_cache
        with self._cache.reserving(task, record.inputs, overwrites=overwrites):
            known = self._cache.find(task, record.inputs)
            if known is not None and not overwrites:
                status.cache_status = CACHE_HIT
                return known
            outputs = self._run_task(scope, record, node, task)
            self._cache.keep(task, record.inputs, outputs)
            status.cache_status = CACHE_POPULATED
            return outputs

    def _run_task(self, scope: _Scope, record: NodeRecord, node: Node, task: TaskTemplate) -> LiteralMap:
        """Try a task as often as its retries allow, each time with the checkpoint of the attempt before."""
        previous = scope.run.checkpoints.get(str(record.execution.id.node_id), "")
        for attempt in itertools.count():
            place = self._place(scope.run, record, attempt, previous)
            given = record.part.inputs if record.part else record.inputs
            self._store.put(place.inputs, given.SerializeToString())
            trial, record.checkpoint = record.begin_attempt(task.id, task.type), place.checkpoint
            name = f"{scope.run.name}-{record.execution.id.node_id}-{attempt}"
            environment = {**_environment(scope.run, task, attempt), **(record.part.environment if record.part else {})}
            try:
                statuses = self._pods.run(name, task, node.task_node.overrides, place, environment)
            except UnschedulableError as error:  # Flyte would wait until the attempt's time is over
                found = ExecutionError(code="Unschedulable", message=str(error), kind=ExecutionError.USER)
                records.fail(trial, found)
                raise NodeFailedError(found) from error
            if scope.run.is_aborted:
                records.abort(trial)
                raise AbortedError
            futures = self._store.get(f"{place.outputs}/futures.pb")
            if futures is not None and not any(statuses):
                records.succeed(trial, LiteralMap())
                return self._expand(scope, record, DynamicJobSpec.FromString(futures))
            outcome = self._outcome(place, statuses, task)
            if isinstance(outcome, LiteralMap):
                return records.succeed(trial, outcome)
            self._fail_or_retry(record, outcome, node.metadata.retries.retries)
            previous = place.checkpoint
        raise AssertionError("retries are counted")

    def _fail_or_retry(self, record: NodeRecord, error: ContainerError, retries: int) -> None:
        """Record a failed attempt.

        Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go, isEligibleForRetry

        Raises:
            NodeFailedError: There is no other.
        """
        found = ExecutionError(code=error.code, message=error.message, kind=error.origin, worker=error.worker)
        records.fail(record.attempts[-1], found)
        failed = [attempt.execution.closure.error.kind for attempt in record.attempts]
        if not self._pods.cluster.counts_all_alike:
            failed = [kind for kind in failed if kind == error.origin]
            retries = _SYSTEM_RETRIES if error.origin == ExecutionError.SYSTEM else retries
        if error.kind != ContainerError.RECOVERABLE or len(failed) > retries:
            raise NodeFailedError(found)

    def _outcome(self, place: Place, statuses: list[int], task: TaskTemplate) -> LiteralMap | ContainerError:
        """What an attempt left behind: the earliest error of its pods, or outputs."""
        errors = [
            ErrorDocument.FromString(self._store.get(uri) or b"").error
            for uri in self._store.list(f"{place.outputs}/error")
        ]
        if errors:
            return min(errors, key=lambda error: error.timestamp.ToNanoseconds())
        outputs = self._store.get(f"{place.outputs}/outputs.pb")
        if outputs is not None and 0 in statuses:
            return LiteralMap.FromString(outputs)
        code, message = "OutputsNotFound", "no outputs were written"
        if 0 not in statuses:
            code, message = "PodFailed", f"exit status {', '.join(map(str, statuses))}"
        # A pod that dies without a word is the system's failure; that of a job uses up the task's retries.
        is_killed = -signal.SIGKILL in statuses and task.type != _JOBS
        origin = ExecutionError.SYSTEM if is_killed else ExecutionError.USER
        return ContainerError(code=code, message=message, kind=ContainerError.RECOVERABLE, origin=origin)

    def _expand(self, scope: _Scope, record: NodeRecord, spec: DynamicJobSpec) -> LiteralMap:
        """Run what a dynamic task returned in place of outputs."""
        node_id = str(record.execution.id.node_id)
        attempt = len(record.attempts) - 1
        template = WorkflowTemplate(nodes=spec.nodes, outputs=spec.outputs)
        template.id.CopyFrom(record.attempts[-1].execution.id.task_id)
        task = scope.tasks[key(template.id)]
        template.interface.outputs.CopyFrom(task.interface.outputs)
        compiled = closure(template, list(spec.subworkflows), list(spec.tasks))
        record.dynamic = compiled
        record.execution.metadata.is_parent_node = True
        record.execution.metadata.is_dynamic = True
        inner = replace(_scope(scope.run, compiled), parent=node_id, prefix=f"{node_id}-{attempt}-")
        return self._walk(inner, template, LiteralMap())

    def _place(self, run: Run, record: NodeRecord, attempt: int, previous: str) -> Place:
        node_id = str(record.execution.id.node_id)
        execution = run.execution.id
        own = f"{execution.project}-{execution.domain}-{execution.name}"
        first, *inner = node_id.split(
            "-"
        )  # ids of nodes and attempts in turn: those of @dynamic lie in its node's folder
        metadata = self._store.uri("metadata", "propeller", own, first, "data", *inner)
        chosen = run.execution.spec.raw_output_data_config.output_location_prefix
        raw = "/".join([chosen or self._store.uri("raw"), uuid.uuid4().hex[:2], f"{run.name}-{node_id}-{attempt}"])
        return Place(f"{metadata}/inputs.pb", f"{metadata}/{attempt}", raw, previous)


@contextmanager
def _recorded(run: Run, record: NodeRecord) -> Iterator[None]:
    """Record how a node ended that did not succeed; one of an execution that was ended does not begin."""
    try:
        if run.is_aborted:
            raise AbortedError
        yield
    except NodeFailedError as failure:
        records.fail(record, failure.error)
        raise
    except AbortedError:
        records.abort(record)
        raise


def _in_order(nodes: list[Node]) -> Iterator[Node]:
    """Nodes after those they need, otherwise as they stand."""
    done: set[str] = set()
    waiting = list(nodes)
    while waiting:
        ready = next(n for n in waiting if done >= ({*n.upstream_node_ids, *promised(n.inputs)} - {"start-node"}))
        waiting.remove(ready)
        done.add(ready.id)
        yield ready


def _environment(run: Run, task: TaskTemplate, attempt: int) -> dict[str, str]:
    """What Flyte tells a task of itself, and what the execution was given."""
    execution = run.execution
    return {
        "FLYTE_INTERNAL_EXECUTION_PROJECT": execution.id.project,
        "FLYTE_INTERNAL_EXECUTION_DOMAIN": execution.id.domain,
        "FLYTE_INTERNAL_EXECUTION_ID": execution.id.name,
        "FLYTE_INTERNAL_EXECUTION_WORKFLOW": execution.closure.workflow_id.name,
        "FLYTE_INTERNAL_EXECUTION_LAUNCHPLAN": execution.spec.launch_plan.name,
        "FLYTE_INTERNAL_TASK_PROJECT": task.id.project,
        "FLYTE_INTERNAL_TASK_DOMAIN": task.id.domain,
        "FLYTE_INTERNAL_TASK_NAME": task.id.name,
        "FLYTE_INTERNAL_TASK_VERSION": task.id.version,
        "FLYTE_ATTEMPT_NUMBER": str(attempt),
        "_F_L_MIN_SIZE_MB": "10",
        "_F_L_MAX_SIZE_MB": "1000",
        **{entry.key: entry.value for entry in execution.spec.envs.values},
    }

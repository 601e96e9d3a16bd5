"""What the control plane says of an execution and its nodes while they run and afterwards."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from flyteidl.admin.execution_pb2 import Execution
from flyteidl.admin.node_execution_pb2 import NodeExecution
from flyteidl.admin.task_execution_pb2 import TaskExecution
from flyteidl.core import execution_pb2 as phases
from flyteidl.core.compiler_pb2 import CompiledWorkflowClosure
from flyteidl.core.execution_pb2 import ExecutionError
from flyteidl.core.identifier_pb2 import Identifier, NodeExecutionIdentifier
from flyteidl.core.literals_pb2 import LiteralMap
from google.protobuf.message import Message

# Records are written by the executions' threads and read by the server's.
LOCK = threading.RLock()


@dataclass
class Attempt:
    """One try of a task."""

    execution: TaskExecution
    inputs: LiteralMap
    outputs: LiteralMap = field(default_factory=LiteralMap)


@dataclass(frozen=True)
class Part:
    """Which item of an array a node is for: its pods read the inputs of all of them, and their own number.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/array/execution_context.go

    Attributes:
        index: The number of the item.
        inputs: Inputs of the array.
    """

    index: int
    inputs: LiteralMap

    @property
    def environment(self) -> dict[str, str]:
        return {"BATCH_JOB_ARRAY_INDEX_VAR_NAME": "FLYTE_K8S_ARRAY_INDEX", "FLYTE_K8S_ARRAY_INDEX": str(self.index)}


@dataclass
class NodeRecord:
    """One node of an execution.

    Attributes:
        execution: As the API gives it.
        inputs: Its inputs.
        outputs: Its outputs, once it succeeded.
        parent: The id of the node that it is part of; empty for a node of the workflow itself.
        dynamic: What a dynamic node turned out to run.
        attempts: The tries of its task.
        checkpoint: Prefix that Flyte gave the last of them for checkpoints.
        part: Which item of an array it is for; None if it is of no array.
    """

    execution: NodeExecution
    inputs: LiteralMap
    outputs: LiteralMap = field(default_factory=LiteralMap)
    parent: str = ""
    dynamic: CompiledWorkflowClosure | None = None
    attempts: list[Attempt] = field(default_factory=list)
    checkpoint: str = ""
    part: Part | None = None

    def begin_attempt(self, task: Identifier, task_type: str) -> Attempt:
        execution = TaskExecution()
        execution.id.task_id.CopyFrom(task)
        execution.id.node_execution_id.CopyFrom(self.execution.id)
        execution.id.retry_attempt = len(self.attempts)
        execution.closure.task_type = task_type
        execution.closure.phase = phases.TaskExecution.RUNNING
        attempt = Attempt(execution, self.inputs)
        with LOCK:
            _stamp(execution.closure, begun=True)
            self.attempts.append(attempt)
        return attempt


@dataclass
class Run:
    """One execution of a launch plan.

    Attributes:
        execution: As the API gives it.
        inputs: Its inputs.
        known: Outputs of nodes that are not run.
        checkpoints: Where nodes of an execution that this one recovers had their checkpoints.
        outputs: Its outputs, once it succeeded.
        nodes: Its nodes, by id.
    """

    execution: Execution
    inputs: LiteralMap
    known: Mapping[str, LiteralMap] = field(default_factory=dict)
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    outputs: LiteralMap = field(default_factory=LiteralMap)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.execution.id.name)

    @property
    def is_aborted(self) -> bool:
        return bool(self.execution.closure.phase == phases.WorkflowExecution.ABORTED)

    def begin_node(self, node_id: str, spec_id: str, parent: str, inputs: LiteralMap) -> NodeRecord:
        execution = NodeExecution()
        execution.id.CopyFrom(NodeExecutionIdentifier(node_id=node_id, execution_id=self.execution.id))
        execution.metadata.spec_node_id = spec_id
        execution.closure.phase = phases.NodeExecution.RUNNING
        record = NodeRecord(execution, inputs, parent=parent)
        with LOCK:
            _stamp(execution.closure, begun=True)
            self.nodes[node_id] = record
        return record


def succeed(record: Run | NodeRecord | Attempt, outputs: LiteralMap) -> LiteralMap:
    """Record outputs."""
    with LOCK:
        record.outputs.CopyFrom(outputs)
        record.execution.closure.phase = _phases_of(record).SUCCEEDED
        _stamp(record.execution.closure)
    return outputs


def fail(record: Run | NodeRecord | Attempt, error: ExecutionError) -> None:
    """Record an error."""
    with LOCK:
        record.execution.closure.error.CopyFrom(error)
        record.execution.closure.phase = _phases_of(record).FAILED
        _stamp(record.execution.closure)


def abort(record: Run | NodeRecord | Attempt, cause: str = "") -> None:
    """Record that it was ended from outside."""
    with LOCK:
        closure = record.execution.closure
        if isinstance(record, Run):  # the only one that says why
            closure.abort_metadata.cause = cause
        closure.phase = _phases_of(record).ABORTED
        _stamp(closure)


def _phases_of(record: Run | NodeRecord | Attempt) -> type[Message]:
    kinds = {Run: phases.WorkflowExecution, NodeRecord: phases.NodeExecution, Attempt: phases.TaskExecution}
    return kinds[type(record)]


def _stamp(closure: Message, *, begun: bool = False) -> None:
    closure.updated_at.GetCurrentTime()
    if begun:
        closure.created_at.GetCurrentTime()
        closure.started_at.GetCurrentTime()
    else:
        closure.duration.FromTimedelta(closure.updated_at.ToDatetime() - closure.started_at.ToDatetime())

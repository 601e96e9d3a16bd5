"""The control plane's API: flyteidl's own gRPC services, as far as the command lines and FlyteRemote call them."""
# ruff: noqa: N802 - the methods have the names of the services' calls

import re
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from flyteidl.admin import (
    common_pb2,
    execution_pb2,
    launch_plan_pb2,
    node_execution_pb2,
    task_execution_pb2,
    task_pb2,
    workflow_pb2,
)
from flyteidl.core.execution_pb2 import WorkflowExecution
from flyteidl.core.identifier_pb2 import NodeExecutionIdentifier, WorkflowExecutionIdentifier
from flyteidl.service import admin_pb2_grpc, dataproxy_pb2, dataproxy_pb2_grpc

from cluster.records import LOCK, Attempt, NodeRecord, Run
from cluster.registry import (
    AlreadyRegisteredError,
    DifferentlyRegisteredError,
    IncompleteInputsError,
    NotRegisteredError,
    TooLargeError,
    found,
    newest,
)
from cluster.store import Store

if TYPE_CHECKING:
    from cluster.control_plane import ControlPlane


class StillRunningError(Exception):
    """Only an execution that has ended can be recovered."""


class EndedError(Exception):
    """An execution that has ended cannot be aborted."""


# flytekit opens a browser to log in when an error has no better code than UNKNOWN: every error has one here.
_CODES: dict[type[Exception], grpc.StatusCode] = {
    NotRegisteredError: grpc.StatusCode.NOT_FOUND,
    AlreadyRegisteredError: grpc.StatusCode.ALREADY_EXISTS,
    DifferentlyRegisteredError: grpc.StatusCode.INVALID_ARGUMENT,
    IncompleteInputsError: grpc.StatusCode.INVALID_ARGUMENT,
    TooLargeError: grpc.StatusCode.INVALID_ARGUMENT,
    StillRunningError: grpc.StatusCode.INVALID_ARGUMENT,
    EndedError: grpc.StatusCode.INVALID_ARGUMENT,
}
_BIGGEST_MESSAGE = 20 * 2**20  # what flytekit accepts


def serve(cluster: "ControlPlane") -> tuple[grpc.Server, int]:
    """Start the server.

    Returns:
        The server and its port on loopback.
    """
    server = grpc.server(
        ThreadPoolExecutor(8),
        interceptors=[_Answers(cluster.calls)],
        options=[
            ("grpc.max_receive_message_length", _BIGGEST_MESSAGE),
            ("grpc.max_send_message_length", _BIGGEST_MESSAGE),
        ],
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(_Admin(cluster), server)
    dataproxy_pb2_grpc.add_DataProxyServiceServicer_to_server(_DataProxy(cluster.store, cluster.runs), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class _DataProxy(dataproxy_pb2_grpc.DataProxyServiceServicer):
    """Where clients upload to, and what they fetch."""

    def __init__(self, store: Store, runs: dict[str, Run]) -> None:
        self._store = store
        self._runs = runs

    def CreateUploadLocation(self, request: Any, context: Any) -> Any:
        root = request.filename_root or request.content_md5.hex()
        uri = self._store.uri("uploads", request.project, request.domain, root, request.filename)
        return dataproxy_pb2.CreateUploadLocationResponse(signed_url=self._store.upload_url(uri), native_url=uri)

    def GetData(self, request: Any, context: Any) -> Any:
        match = re.fullmatch(r"flyte://v1/[^/]+/[^/]+/(\w+)/([\w-]+)/o/(\w+)", request.flyte_url)
        if match is None or match[1] not in self._runs:
            raise NotRegisteredError(f"{request.flyte_url} names no output of an execution")
        return dataproxy_pb2.GetDataResponse(literal=self._runs[match[1]].nodes[match[2]].outputs.literals[match[3]])


class _Registered(admin_pb2_grpc.AdminServiceServicer):
    """Tasks, workflows and launch plans."""

    def __init__(self, cluster: "ControlPlane") -> None:
        self._cluster = cluster
        self._registry = cluster.registry

    def CreateTask(self, request: Any, context: Any) -> Any:
        self._registry.add_task(request.id, request.spec)
        return task_pb2.TaskCreateResponse()

    def GetTask(self, request: Any, context: Any) -> Any:
        return found(self._registry.tasks, request.id)

    def ListTasks(self, request: Any, context: Any) -> Any:
        return task_pb2.TaskList(tasks=newest(self._registry.tasks, request))

    def CreateWorkflow(self, request: Any, context: Any) -> Any:
        self._registry.add_workflow(request.id, request.spec)
        return workflow_pb2.WorkflowCreateResponse()

    def GetWorkflow(self, request: Any, context: Any) -> Any:
        return found(self._registry.workflows, request.id)

    def ListWorkflows(self, request: Any, context: Any) -> Any:
        return workflow_pb2.WorkflowList(workflows=newest(self._registry.workflows, request))

    def CreateLaunchPlan(self, request: Any, context: Any) -> Any:
        self._registry.add_launch_plan(request.id, request.spec)
        return launch_plan_pb2.LaunchPlanCreateResponse()

    def GetLaunchPlan(self, request: Any, context: Any) -> Any:
        return found(self._registry.launch_plans, request.id)

    def ListLaunchPlans(self, request: Any, context: Any) -> Any:
        return launch_plan_pb2.LaunchPlanList(launch_plans=newest(self._registry.launch_plans, request))

    def GetActiveLaunchPlan(self, request: Any, context: Any) -> Any:
        wanted = (request.id.project, request.id.domain, request.id.name)
        active = [p for p in self._registry.active_plans() if (p.id.project, p.id.domain, p.id.name) == wanted]
        if not active:
            raise NotRegisteredError(f"no version of {request.id.name} is active")
        return active[0]

    def UpdateLaunchPlan(self, request: Any, context: Any) -> Any:
        self._registry.set_state(request.id, request.state)
        return launch_plan_pb2.LaunchPlanUpdateResponse()


class _Admin(_Registered):
    """Those, and executions."""

    def CreateExecution(self, request: Any, context: Any) -> Any:
        return execution_pb2.ExecutionCreateResponse(id=self._cluster.execute(request))

    def RecoverExecution(self, request: Any, context: Any) -> Any:
        run = self._run(request.id)
        if run.execution.closure.phase == WorkflowExecution.RUNNING:
            raise StillRunningError(f"{request.id.name} has not ended")
        return execution_pb2.ExecutionCreateResponse(id=self._cluster.recover(run, request.name))

    def TerminateExecution(self, request: Any, context: Any) -> Any:
        run = self._run(request.id)
        if run.execution.closure.phase != WorkflowExecution.RUNNING:
            raise EndedError(f"Cannot abort an already terminated workflow execution {request.id.name}")
        self._cluster.terminate(run, request.cause)
        return execution_pb2.ExecutionTerminateResponse()

    def GetExecution(self, request: Any, context: Any) -> Any:
        return self._run(request.id).execution

    def GetExecutionData(self, request: Any, context: Any) -> Any:
        return execution_pb2.WorkflowExecutionGetDataResponse(**_data(self._run(request.id)))

    def ListExecutions(self, request: Any, context: Any) -> Any:
        runs = [run.execution for run in reversed(self._cluster.runs.values())]
        return execution_pb2.ExecutionList(executions=runs[: request.limit or None])

    def ListNodeExecutions(self, request: Any, context: Any) -> Any:
        nodes = self._run(request.workflow_execution_id).nodes.values()
        children = [node.execution for node in nodes if node.parent == request.unique_parent_id]
        return node_execution_pb2.NodeExecutionList(node_executions=children)

    def GetNodeExecution(self, request: Any, context: Any) -> Any:
        return self._node(request.id).execution

    def GetNodeExecutionData(self, request: Any, context: Any) -> Any:
        node = self._node(request.id)
        response = node_execution_pb2.NodeExecutionGetDataResponse(**_data(node))
        if node.dynamic is not None:
            response.dynamic_workflow.compiled_workflow.CopyFrom(node.dynamic)
            response.dynamic_workflow.id.CopyFrom(node.dynamic.primary.template.id)
        return response

    def ListTaskExecutions(self, request: Any, context: Any) -> Any:
        attempts = self._node(request.node_execution_id).attempts
        return task_execution_pb2.TaskExecutionList(task_executions=[attempt.execution for attempt in attempts])

    def GetTaskExecution(self, request: Any, context: Any) -> Any:
        return self._attempt(request.id).execution

    def GetTaskExecutionData(self, request: Any, context: Any) -> Any:
        return task_execution_pb2.TaskExecutionGetDataResponse(**_data(self._attempt(request.id)))

    def _run(self, identifier: WorkflowExecutionIdentifier) -> Run:
        if identifier.name not in self._cluster.runs:
            raise NotRegisteredError(f"there is no execution {identifier.name}")
        return self._cluster.runs[identifier.name]

    def _node(self, identifier: NodeExecutionIdentifier) -> NodeRecord:
        return self._run(identifier.execution_id).nodes[identifier.node_id]

    def _attempt(self, identifier: Any) -> Attempt:
        return self._node(identifier.node_execution_id).attempts[identifier.retry_attempt]


def _data(record: Run | NodeRecord | Attempt) -> dict[str, Any]:
    """Inputs and outputs, in full."""
    return {
        "full_inputs": record.inputs,
        "full_outputs": record.outputs,
        "inputs": common_pb2.UrlBlob(bytes=record.inputs.ByteSize()),
        "outputs": common_pb2.UrlBlob(bytes=record.outputs.ByteSize()),
    }


class _Answers(grpc.ServerInterceptor):
    """One call at a time; every error has a code, and a bug shows its trace to the caller."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        if handler is None:
            return None

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                with LOCK:
                    self._calls.append(method)
                    return handler.unary_unary(request, context)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
                code = _CODES.get(type(error), grpc.StatusCode.INTERNAL)
                bug = code == grpc.StatusCode.INTERNAL
                context.abort(code, f"{method}: {traceback.format_exc() if bug else error}")

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

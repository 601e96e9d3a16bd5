"""What was registered: tasks, workflows and launch plans, by name and version."""

import itertools
from typing import TypeVar

from flyteidl.admin.common_pb2 import ResourceListRequest
from flyteidl.admin.launch_plan_pb2 import ACTIVE, INACTIVE, LaunchPlan, LaunchPlanSpec
from flyteidl.admin.task_pb2 import Task, TaskSpec
from flyteidl.admin.workflow_pb2 import Workflow, WorkflowSpec
from flyteidl.core.compiler_pb2 import CompiledTask, CompiledWorkflow, CompiledWorkflowClosure
from flyteidl.core.identifier_pb2 import Identifier
from flyteidl.core.interface_pb2 import Parameter
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import Node, WorkflowTemplate
from google.protobuf.message import Message
from specification.pods import merged

from cluster.description import Description

Key = tuple[str, str, str, str]
_Entity = TypeVar("_Entity", Task, Workflow, LaunchPlan)


class NotRegisteredError(LookupError):
    """There is nothing of that name and version."""


class AlreadyRegisteredError(ValueError):
    """There is the same of that name and version."""


class DifferentlyRegisteredError(ValueError):
    """There is something else of that name and version."""


class TooLargeError(ValueError):
    """A task asks for more than the platform allows."""


class IncompleteInputsError(ValueError):
    """An execution lacks inputs."""


def key(identifier: Identifier) -> Key:
    return identifier.project, identifier.domain, identifier.name, identifier.version


class Registry:
    """All entities; the newest is last."""

    def __init__(self, cluster: Description) -> None:
        self._cluster = cluster
        self.tasks: dict[Key, Task] = {}
        self.workflows: dict[Key, Workflow] = {}
        self.launch_plans: dict[Key, LaunchPlan] = {}
        self._specs: dict[tuple[str, Key], bytes] = {}

    def add_task(self, identifier: Identifier, spec: TaskSpec) -> None:
        if problem := self._cluster.exceeded(merged(spec.template)):
            raise TooLargeError(problem)
        self._accept("task", identifier, spec)
        task = Task(id=identifier)
        task.closure.compiled_task.template.CopyFrom(spec.template)
        task.closure.compiled_task.template.id.CopyFrom(identifier)
        self.tasks[key(identifier)] = task

    def add_workflow(self, identifier: Identifier, spec: WorkflowSpec) -> None:
        self._accept("workflow", identifier, spec)
        workflow = Workflow(id=identifier)
        workflow.closure.compiled_workflow.CopyFrom(self._compile(spec))
        self.workflows[key(identifier)] = workflow

    def add_launch_plan(self, identifier: Identifier, spec: LaunchPlanSpec) -> None:
        self._accept("launch plan", identifier, spec)
        interface = found(self.workflows, spec.workflow_id).closure.compiled_workflow.primary.template.interface
        plan = LaunchPlan(id=identifier, spec=spec)
        plan.closure.state = INACTIVE
        expected = plan.closure.expected_inputs.parameters
        for name, variable in interface.inputs.variables.items():
            if name in spec.default_inputs.parameters:
                expected[name].CopyFrom(spec.default_inputs.parameters[name])
            elif name not in spec.fixed_inputs.literals:
                expected[name].CopyFrom(Parameter(var=variable, required=True))
        plan.closure.expected_outputs.CopyFrom(interface.outputs)
        self.launch_plans[key(identifier)] = plan

    def set_state(self, identifier: Identifier, state: int) -> None:
        """Activate or deactivate a launch plan; of one name, at most one version is active."""
        chosen = found(self.launch_plans, identifier)
        for plan in self.launch_plans.values():
            if state == ACTIVE and key(plan.id)[:3] == key(identifier)[:3]:
                plan.closure.state = INACTIVE
        chosen.closure.state = state

    def active_plans(self) -> list[LaunchPlan]:
        return [plan for plan in self.launch_plans.values() if plan.closure.state == ACTIVE]

    def _accept(self, kind: str, identifier: Identifier, spec: Message) -> None:
        content = spec.SerializeToString(deterministic=True)
        known = self._specs.setdefault((kind, key(identifier)), b"")
        name = f"The {kind} {identifier.name} {identifier.version}"
        if known == content:
            raise AlreadyRegisteredError(f"{name} is registered already")
        if known:
            raise DifferentlyRegisteredError(f"{name} is registered with another structure")
        self._specs[kind, key(identifier)] = content

    def _compile(self, spec: WorkflowSpec) -> CompiledWorkflowClosure:
        tasks: dict[Key, TaskTemplate] = {}
        for template in (spec.template, *spec.sub_workflows):
            for identifier in references([*template.nodes, template.failure_node]):
                template_of_task = found(self.tasks, identifier).closure.compiled_task.template
                tasks[key(identifier)] = template_of_task
        return closure(spec.template, list(spec.sub_workflows), list(tasks.values()))


def closure(
    primary: WorkflowTemplate, workflows: list[WorkflowTemplate], tasks: list[TaskTemplate]
) -> CompiledWorkflowClosure:
    """A workflow with all it needs."""
    return CompiledWorkflowClosure(
        primary=CompiledWorkflow(template=primary),
        sub_workflows=[CompiledWorkflow(template=template) for template in workflows],
        tasks=[CompiledTask(template=template) for template in tasks],
    )


def references(nodes: list[Node]) -> list[Identifier]:
    """The tasks that nodes run."""
    single = [node.array_node.node if node.WhichOneof("target") == "array_node" else node for node in nodes]
    return [node.task_node.reference_id for node in single if node.WhichOneof("target") == "task_node"]


def found(entities: dict[Key, _Entity], identifier: Identifier) -> _Entity:
    """An entity.

    Raises:
        NotRegisteredError: There is none.
    """
    if key(identifier) not in entities:
        raise NotRegisteredError(f"{identifier.name} of version {identifier.version} is not registered")
    return entities[key(identifier)]


def newest(entities: dict[Key, _Entity], request: ResourceListRequest) -> list[_Entity]:
    """The entities that a list request asks for, the newest first."""
    wanted = (request.id.project, request.id.domain, request.id.name)
    matching = (
        entity
        for entity in reversed(entities.values())
        if key(entity.id)[:2] == wanted[:2] and wanted[2] in ("", entity.id.name)
    )
    return list(itertools.islice(matching, request.limit or None))

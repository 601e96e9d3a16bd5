"""Tasks, workflows and launch plans: what must be true of each, whatever its numbers are."""

import inspect
import sys

from flyteidl.core.execution_pb2 import WorkflowExecution
from holding import holds_for_every

from specification import golden, pods, rendering
from specification.serialized import IMAGE, PART, PRIVATE, SETTINGS, nodes_of
from tasks.platform import Platform
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.config.rules import NODE_COUNTS

TASKS = golden.names("task")
WORKFLOWS = golden.names("workflow")
LAUNCH_PLANS = golden.names("launch_plan")
PLANS = golden.names("plan")
NODES = golden.node_identifiers()
EVERY_TASK = holds_for_every("name", TASKS)
_NODES_OF = {f"tasks.{task}_{nodes}": nodes for task in ("train.train", "calibrate.calibrate") for nodes in NODE_COUNTS}


def seconds(metadata):
    return metadata.timeout.ToTimedelta().total_seconds()


def secrets_of(task):
    return {f"{secret.group}/{secret.key}" for secret in task.security_context.secrets}


def source_of(name):
    """The module that a task is declared in."""
    module = name.rpartition(".")[0]
    __import__(module)
    return inspect.getsource(sys.modules[module])


def test_there_is_something_of_every_kind():
    assert all(len(found) > 2 for found in (TASKS, WORKFLOWS, LAUNCH_PLANS, PLANS, NODES))
    assert _NODES_OF.keys() < set(TASKS)


@EVERY_TASK
def test_a_job_of_the_training_operator_exactly_where_there_is_more_than_one_node(package, name):
    task, nodes = package.template(name), _NODES_OF.get(name, 1)
    assert task.type == ("pytorch" if nodes > 1 else "python-task")
    assert bool(task.custom) == (nodes > 1)


@holds_for_every("name", [name for name, nodes in _NODES_OF.items() if nodes > 1])
def test_a_job_has_all_its_nodes_or_none(package, name):
    job = pods.job(package.template(name))
    elastic = job["elastic"]
    # A range would start all of them and shrink nothing.
    assert 1 <= elastic["min"] == elastic["max"] == job["workers"] == _NODES_OF[name]
    assert elastic["rendezvous"] == "c10d"
    # A dead rank costs the start of its group, not of the pods; agents of other nodes join the new rendezvous.
    assert elastic["restarts"] == Platform().restarts == 3
    # The number of processes is in the plan (docs/adr/0002).
    assert elastic["processesPerNode"] == 1


@EVERY_TASK
def test_a_task_runs_its_own_function_from_the_given_image(package, name):
    container = pods.merged(package.template(name)).container
    module, _, function = name.rpartition(".")
    loader = container["args"][container["args"].index("--") + 1 :]
    assert loader == ["task-module", module, "task-name", function]
    assert container["image"] == IMAGE


@EVERY_TASK
def test_a_task_ends_some_day_and_is_tried_again(package, name):
    metadata = package.template(name).metadata
    assert seconds(metadata) > 0
    assert metadata.retries.retries > 0


@holds_for_every("node", NODES)
def test_a_node_says_what_its_task_says_of_its_attempts(package, node):
    """The engine reads the time limit and the interruptibility of the node only."""
    node = package.node(node)
    task = package.task_of(node).metadata
    assert seconds(node.metadata) == seconds(task)
    assert node.metadata.retries.retries == task.retries.retries
    assert node.metadata.interruptible == task.interruptible


@holds_for_every("plan", PLANS)
def test_the_time_limit_of_a_dynamic_task_holds_for_all_that_it_starts(package, plan):
    """A `@dynamic` node runs until its last node is done, and its time limit runs as long.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go, execute().
    """
    ends = {}
    for node in package.parts[plan].nodes:  # flytekit lists a node after those it waits for
        ends[node.id] = seconds(node.metadata) + max((ends[before] for before in node.upstream_node_ids), default=0)
    allowed = seconds(package.template(PART).metadata)
    assert allowed >= max(ends.values()), f"{PART}: after {allowed / 3600:g} h all that it started is stopped"


@holds_for_every("plan", PLANS)
def test_what_a_dynamic_task_starts_needs_none_of_its_inputs(package, plan):
    """The engine knows no inputs there: a promise of one is refused as a malformed dynamic workflow.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/dynamic/utils.go, underlyingInterface().
    """
    nodes = package.parts[plan].nodes
    bound = [(node.id, binding.var, binding.binding) for node in nodes for binding in node.inputs]
    promised = [(node, var) for node, var, data in bound if data.HasField("promise") and not data.promise.node_id]
    assert len(bound) > 10
    assert promised == []


@EVERY_TASK
def test_a_cached_task_is_made_once_and_known_by_a_version(package, name):
    task = package.template(name)
    if not task.metadata.discoverable:
        assert not task.metadata.discovery_version
        return
    assert task.metadata.discovery_version
    assert task.metadata.cache_serializable
    assert set(task.metadata.cache_ignore_input_vars) < set(task.interface.inputs.variables)
    assert task.interface.outputs.variables


def test_what_is_downloaded_and_prepared_is_cached(package):
    cached = {name.rpartition(".")[2] for name in TASKS if package.template(name).metadata.discoverable}
    assert cached >= {"fetch_model", "prepare_dataset"}


@EVERY_TASK
def test_a_task_may_read_the_secrets_that_it_uses_and_no_other(package, name):
    uses = set()
    if "hub_token(" in source_of(name) or name == "tasks.calibrate.show_calibrated":  # which plans once more
        uses.add(SETTINGS["THRIFTUNE_HUB_SECRET"])
    # A sweep's plan has the preflight of its trials.
    trains = name.startswith(("tasks.train.", "tasks.trials.")) or name == "tasks.plan_sweep.plan_round"
    if trains or "has_wandb_login(" in source_of(name):
        uses.add(SETTINGS["THRIFTUNE_WANDB_SECRET"])
    assert secrets_of(package.template(name)) == uses


def test_nothing_private_is_registered(package):
    assert len(package.content) > 30
    for name, value in PRIVATE.items():
        assert not any(value.encode() in content for content in package.content), name


@holds_for_every("name", WORKFLOWS)
def test_a_workflow_runs_tasks_of_this_package_and_has_a_launch_plan(package, name):
    workflow = package.workflows[name].template
    tasks = [node.task_node.reference_id.name for node in nodes_of(workflow) if node.HasField("task_node")]
    assert tasks
    assert set(tasks) <= set(package.tasks)
    assert {binding.var for binding in workflow.outputs} == set(workflow.interface.outputs.variables)
    assert package.launch_plans[name].spec.workflow_id.name == name


def test_every_task_is_part_of_something(package):
    used = {task.id.name for _, task, _ in package.pods()}
    # Of the node counts, the plans here have two; one factory declares them all. A calibration and a run that only
    # measures have parts of their own, compiled when they run: tests/test_provisioning.py, tests/test_benchmark_run.py.
    # So have a file of prompts that is answered in parts, and a sweep: tests/test_mapping.py, test_sweep_workflow.py.
    in_parts = (
        "tasks.calibrate.",
        "tasks.generate_parts.",
        "tasks.trials.",
        "tasks.summarize_sweep.",
        "workflows.trials.",
    )
    elsewhere = {name for name in TASKS if name.startswith(in_parts)}
    assert set(TASKS) - used <= _NODES_OF.keys() | elsewhere | {"tasks.compare_benchmarks.summarize_benchmarks"}


def scheduled(package):
    plans = {name.rpartition(".")[2]: plan for name, plan in package.launch_plans.items()}
    found = {name: plan for name, plan in plans.items() if plan.spec.entity_metadata.schedule.ListFields()}
    assert found.keys() >= {"nightly_qlora", "weekly_full"}
    return found


def test_a_schedule_is_cron_of_five_fields(package):
    for name, plan in scheduled(package).items():
        schedule = plan.spec.entity_metadata.schedule
        assert schedule.WhichOneof("ScheduleExpression") == "cron_schedule", name
        assert len(schedule.cron_schedule.schedule.split()) == 5, name
        assert not schedule.cron_expression
        inputs = package.workflows[plan.spec.workflow_id.name].template.interface.inputs.variables
        assert not schedule.kickoff_time_input_arg or schedule.kickoff_time_input_arg in inputs


def test_a_scheduled_run_has_a_value_for_every_input(package):
    for name, plan in scheduled(package).items():
        spec = plan.spec
        defaults = {k for k, parameter in spec.default_inputs.parameters.items() if not parameter.required}
        inputs = set(package.workflows[spec.workflow_id.name].template.interface.inputs.variables)
        assert inputs == defaults | set(spec.fixed_inputs.literals), name


def test_a_scheduled_run_is_one_that_its_workflow_accepts(package):
    for name, plan in scheduled(package).items():
        fixed, defaults = plan.spec.fixed_inputs.literals, plan.spec.default_inputs.parameters
        value = fixed["config"] if "config" in fixed else defaults["config"].default
        config = RunConfig.model_validate(rendering.value(value))
        assert METHODS[config.method].workflow in plan.spec.workflow_id.name, name


def test_a_scheduled_run_tells_of_its_failure(package):
    for name, plan in scheduled(package).items():
        notifications = plan.spec.entity_metadata.notifications
        assert {mail for n in notifications for mail in n.email.recipients_email} == {SETTINGS["THRIFTUNE_NOTIFY"]}, (
            name
        )
        phases = {phase for notification in notifications for phase in notification.phases}
        assert phases >= {WorkflowExecution.FAILED, WorkflowExecution.TIMED_OUT}, name


def test_a_scheduled_run_waits_for_none_and_knows_its_place(package):
    team, _, value = SETTINGS["THRIFTUNE_LABELS"].partition("=")
    for name, plan in scheduled(package).items():
        assert plan.spec.concurrency_policy.max == 1, name
        assert plan.spec.labels.values[team] == value, name
        assert plan.spec.raw_output_data_config.output_location_prefix == SETTINGS["THRIFTUNE_RAW_OUTPUT"], name


@holds_for_every("name", LAUNCH_PLANS)
def test_what_no_schedule_starts_asks_for_what_it_needs(package, name):
    plan = package.launch_plans[name]
    inputs = package.workflows[plan.spec.workflow_id.name].template.interface.inputs.variables
    given = {*plan.spec.default_inputs.parameters, *plan.spec.fixed_inputs.literals}
    assert given == set(inputs)

"""The control plane itself, on a project that takes seconds."""

import msgpack
import pytest
from flyteidl.core.catalog_pb2 import CACHE_HIT, CACHE_POPULATED
from flyteidl.core.execution_pb2 import NodeExecution
from flyteidl.core.literals_pb2 import Binary, Binding, Literal, LiteralMap, Scalar
from flytekit.configuration import Config
from flytekit.remote import FlyteRemote

from cluster.conftest import IN_CLUSTER, ROOT, done
from cluster.literals import INPUTS, resolve

EXAMPLE = ROOT / "tests" / "cluster" / "example"
SETTINGS = '{"size": 1, "failures": 2}'


@pytest.fixture(scope="module")
def first(cluster, pyflyte):
    pyflyte("run", "--remote", *IN_CLUSTER, "example.py", "example", "--settings", SETTINGS, cwd=EXAMPLE)
    return done(cluster)


def statuses(run):
    return {name: node.execution.closure.task_node_metadata.cache_status for name, node in run.nodes.items()}


def test_values_files_and_attributes_reach_the_tasks_that_need_them(first):
    doubled, seen = first.outputs.literals["o0"], first.outputs.literals["o1"]
    assert [item.scalar.primitive.integer for item in doubled.collection.literals] == [0, 2]
    assert seen.scalar.primitive.string_value == "2"


def test_an_attempt_is_repeated_with_the_checkpoint_of_the_one_before(first):
    attempts = first.nodes["n0"].attempts
    errors = [attempt.execution.closure.error for attempt in attempts]
    assert [error.code for error in errors] == ["USER:Recoverable", "PodFailed", ""]
    assert "try again" in errors[0].message
    assert "exit status -9" in errors[1].message


def test_a_dynamic_node_runs_its_own_nodes(first):
    children = [name for name, node in first.nodes.items() if node.parent == "n2"]
    assert children == ["n2-0-dn0", "n2-0-dn1"]


def test_a_failed_task_fails_the_run_with_its_error_after_on_failure(cluster, pyflyte):
    result = pyflyte("run", "--remote", *IN_CLUSTER, "example.py", "failing", cwd=EXAMPLE, check=False)
    assert result.returncode != 0
    run = list(cluster.runs.values())[-1]
    assert "size = 0: too small" in run.execution.closure.error.message
    assert {name: len(node.attempts) for name, node in run.nodes.items()} == {"n0": 1, "fn0": 1}
    assert run.nodes["fn0"].execution.closure.phase == NodeExecution.SUCCEEDED


def test_an_activated_launch_plan_fires_and_is_served_from_the_cache(cluster, pyflyte, first):
    version = ("--image", "example:1", "--destination-dir", ".", "--version", "v1")
    pyflyte("register", *version, "example.py", cwd=EXAMPLE)
    assert not cluster.registry.active_plans()
    pyflyte("launchplan", "--activate", "nightly")
    run = done(cluster, cluster.fire("nightly"))
    assert run.outputs.literals["o1"].scalar.primitive.string_value == "0"
    assert statuses(first)["n1"] == CACHE_POPULATED
    assert {name for name, status in statuses(run).items() if status == CACHE_HIT} == {"n1", "n2-0-dn0", "n2-0-dn1"}
    assert not run.nodes["n1"].attempts


def test_flyte_remote_fetches_an_execution_with_its_nodes(cluster, first):
    remote = FlyteRemote(Config.auto(config_file=str(cluster.config)), "flytesnacks", "development")
    execution = remote.fetch_execution(name=first.name)
    remote.sync(execution, sync_nodes=True)
    assert execution.is_successful
    assert execution.outputs["o0"] == [0, 2]
    assert set(execution.node_executions) == {"n0", "n1", "n2"}
    assert len(execution.node_executions["n0"].task_executions) == 3


def test_an_attribute_that_is_a_mapping_comes_in_another_order_each_time():
    """As the engine's Go writes it, for which no cached task may be known by one (flyteorg/flyte#6517)."""
    content = {"inner": {f"key{number}": number for number in range(20)}}
    binding = Binding(var="x")
    binding.binding.promise.var = "config"
    binding.binding.promise.attr_path.add(string_value="inner")
    literal = Literal(scalar=Scalar(binary=Binary(value=msgpack.packb(content), tag="msgpack")))
    values = {INPUTS: LiteralMap(literals={"config": literal})}
    first, second = (resolve([binding], values).literals["x"].scalar.binary.value for _ in range(2))
    assert first != second
    assert msgpack.unpackb(first) == msgpack.unpackb(second) == content["inner"]

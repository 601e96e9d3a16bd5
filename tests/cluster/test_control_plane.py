"""The control plane itself, on a project that takes seconds."""

import gzip
from collections import OrderedDict
from dataclasses import replace

import msgpack
import pytest
from flyteidl.admin.execution_pb2 import ExecutionCreateRequest
from flyteidl.core.catalog_pb2 import CACHE_HIT, CACHE_POPULATED
from flyteidl.core.execution_pb2 import NodeExecution
from flyteidl.core.literals_pb2 import Binary, Binding, Literal, LiteralMap, Primitive, Scalar
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import TaskNodeOverrides
from flytekit.configuration import Config, FastSerializationSettings, ImageConfig, SerializationSettings
from flytekit.remote import FlyteRemote
from flytekit.tools.translator import get_serializable
from specification.pods import Pod
from starting import Fresh

from cluster.conftest import IN_CLUSTER, ROOT, done
from cluster.description import CLUSTER, INSTANCE_TYPE, SANDBOX, UnschedulableError, quantity
from cluster.literals import INPUTS, resolve
from cluster.pods import Place
from tasks.pin import pin

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


def test_of_two_equal_runs_at_once_one_waits_for_the_other_and_takes_its_result(cluster, pyflyte):
    """As a real Flyte does with `serialize`: two equal trainings at once train once."""
    pyflyte("run", "--remote", *IN_CLUSTER, "example.py", "patient", "--x", "1", cwd=EXAMPLE)
    spec = done(cluster).execution.spec
    two = Literal(scalar=Scalar(primitive=Primitive(integer=2)))
    request = ExecutionCreateRequest(
        project="flytesnacks", domain="development", spec=spec, inputs=LiteralMap(literals={"x": two})
    )
    started = [cluster.execute(request).name for _ in range(2)]
    runs = [done(cluster, name) for name in started]
    assert sorted(statuses(run)["n0"] for run in runs) == [CACHE_HIT, CACHE_POPULATED]
    said = [run.outputs.literals["o0"].scalar.primitive.string_value for run in runs]
    assert said[0] == said[1]
    assert said[0] in {f"2 by {name}" for name in started}


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


def pod(selector: dict[str, str] | None = None, **asked: str) -> Pod:
    resources = {"requests": asked, "limits": asked}
    container = {"name": "main", "resources": resources}
    return Pod("main", {}, {}, {"containers": [container], "nodeSelector": selector or {}})


def test_a_pod_is_started_where_its_selector_and_its_size_allow():
    """A selector of a label that no node has went unnoticed here; on a cluster the pod waits for hours."""
    node = SANDBOX.place(pod({INSTANCE_TYPE: "k3s"}, cpu="2", memory="4Gi"))
    assert node.labels == {INSTANCE_TYPE: "k3s"}
    with pytest.raises(UnschedulableError, match=r"0/1 .*affinity/selector .*instance-type=g4dn.metal"):
        SANDBOX.place(pod({INSTANCE_TYPE: "g4dn.metal"}))
    with pytest.raises(UnschedulableError, match=r"Insufficient memory \(12Gi of 6\.8Gi\)"):
        SANDBOX.place(pod(memory="12Gi"))
    with pytest.raises(UnschedulableError, match=r"Insufficient nvidia\.com/gpu \(1 of 0\)"):
        CLUSTER.place(pod(**{"nvidia.com/gpu": "1"}))


def test_a_container_that_asks_for_nothing_asks_for_the_defaults():
    small = replace(SANDBOX, defaults={"cpu": "4"})
    with pytest.raises(UnschedulableError, match="Insufficient cpu"):
        small.place(pod())
    small.place(pod(cpu="500m"))
    assert [quantity(text) for text in ("500m", "2", "1Gi", "1.5Mi", "1M")] == [0.5, 2, 2**30, 1.5 * 2**20, 1e6]


def test_a_task_above_the_platform_s_limits_is_refused_in_its_words():
    assert CLUSTER.exceeded(pod(memory="800Gi")) == ""
    limited = replace(CLUSTER, limits={"memory": "1Gi", "cpu": "2"})
    assert limited.exceeded(pod(memory="1Gi", cpu="2")) == ""
    message = "Requested MEMORY limit [8Gi] is greater than current limit set in the platform configuration [1Gi]"
    assert message in limited.exceeded(pod(memory="8Gi"))


def test_a_run_whose_pod_no_node_takes_ends_at_once(cluster, pyflyte, first):
    cluster.pods.cluster = replace(CLUSTER, nodes=())
    try:
        started = ("run", "--remote", *IN_CLUSTER, "example.py", "failing")
        result = pyflyte(*started, cwd=EXAMPLE, check=False)
    finally:
        cluster.pods.cluster = CLUSTER
    assert result.returncode != 0
    run = list(cluster.runs.values())[-1]
    assert run.execution.closure.error.code == "Unschedulable"
    assert "0/0 nodes are available" in run.execution.closure.error.message


@pytest.mark.parametrize(("description", "pods"), [(CLUSTER, 2), (SANDBOX, 1)])
def test_a_job_is_one_plain_pod_where_the_plugin_is_off(cluster, description, pods):
    job = TaskTemplate(type="pytorch", task_type_version=1)
    job.container.args.extend(["python", "-c", "import os; print(os.environ.get('PET_NNODES'))"])
    elastic = {"minReplicas": 2, "maxReplicas": 2, "nprocPerNode": 1, "rdzvBackend": "c10d"}
    job.custom.update({"elasticConfig": elastic, "workerReplicas": {"replicas": 2}})
    place, name = Place("inputs", "outputs", "raw"), f"job-{pods}"
    cluster.pods.cluster = description
    try:
        assert cluster.pods.run(name, job, TaskNodeOverrides(), place, {}) == [0] * pods
    finally:
        cluster.pods.cluster = CLUSTER
    said = {file.name: file.read_text().strip() for file in cluster.pods.logs.glob(f"{name}*.log")}
    workers = {f"{name}-worker-0.log": "2:2", f"{name}-worker-1.log": "2:2"}
    assert said == (workers if pods == 2 else {f"{name}.log": "None"})


def test_the_file_of_the_launch_plans_is_registered_and_starts_one(cluster, pyflyte):
    """As far as its first pod, which no node takes: flytekit itself wants the default as a run."""
    cluster.pods.cluster = replace(CLUSTER, nodes=())
    try:
        pyflyte("run", "--remote", *IN_CLUSTER, "workflows/launch_plans.py", "nightly_qlora", check=False)
    finally:
        cluster.pods.cluster = CLUSTER
    run = list(cluster.runs.values())[-1]
    assert run.execution.spec.launch_plan.name == "nightly_qlora"
    assert run.execution.closure.error.code == "Unschedulable"


@pytest.mark.parametrize("is_uploaded", [True, False])
def test_a_pod_without_our_code_says_so_and_unpacking_says_nothing(cluster, is_uploaded, tmp_path, monkeypatch):
    """flytekit raises nothing and ends with 0: what it logs is all that the pod says. (Forks leave no "Unclosed".)"""
    monkeypatch.setattr(cluster.pods, "starts", Fresh())
    (tmp_path / "empty.tar.gz").write_bytes(gzip.compress(bytes(10240)))
    upload = cluster.store.upload(tmp_path / "empty.tar.gz", cluster.store.uri("uploads", "empty.tar.gz"))
    code = FastSerializationSettings(is_uploaded, destination_dir=".", distribution_location=upload)
    settings = SerializationSettings(ImageConfig.auto(img_name="example:1"), fast_serialization_settings=code)
    task = get_serializable(OrderedDict(), settings, pin).template.to_flyte_idl()
    name, folder = f"lacking-{is_uploaded}", cluster.store.uri("lacking", str(is_uploaded))
    place, engine = Place(f"{folder}/in", f"{folder}/out", folder), {"FLYTE_INTERNAL_EXECUTION_ID": name}
    assert cluster.pods.run(name, task, TaskNodeOverrides(), place, engine) == [0]
    said = cluster.pods.log(name)
    assert "No module named 'tasks'" in said
    assert said.count("Unclosed client session") <= 1, "one of the process that lacks our code, none of the first"


@pytest.mark.parametrize(("env", "level"), [(None, "30"), ({"FLYTE_SDK_LOGGING_LEVEL": "10"}, "10")])
def test_the_level_that_a_person_asks_for_is_that_of_the_task(env, level):
    code = FastSerializationSettings(enabled=True, destination_dir=".", distribution_location="s3://b/code.tar.gz")
    image = ImageConfig.auto(img_name="example:1")
    settings = SerializationSettings(image, env=env, fast_serialization_settings=code)
    assert pin.get_command(settings)[:3] == ["env", f"FLYTE_SDK_LOGGING_LEVEL={level}", "pyflyte-execute"]
    assert pin.get_command(SerializationSettings(image, env=env))[0] == "pyflyte-execute"


def test_pods_and_clients_of_the_store_have_flytekit_s_names_alone(cluster):
    names = {name for name in {**cluster.pods.variables, **cluster.client} if "AWS" in name}
    assert names == {"FLYTE_AWS_ENDPOINT", "FLYTE_AWS_ACCESS_KEY_ID", "FLYTE_AWS_SECRET_ACCESS_KEY"}


def test_an_output_is_fetched_into_a_folder(cluster, pyflyte, first, tmp_path):
    literal = first.nodes["n0"].outputs.literals["o0"]
    pyflyte("fetch", f"flyte://v1/flytesnacks/development/{first.name}/n0/o/o0", str(tmp_path))
    (file,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert file.read_bytes() == cluster.store.get(literal.scalar.blob.uri)


def spans(run):
    """When each item of a map task began and ended, by its number."""
    words = [item.scalar.primitive.string_value.split() for item in run.outputs.literals["o0"].collection.literals]
    return {int(x): (float(begun), float(ended)) for _, x, begun, ended in words}


def test_items_of_a_map_task_run_side_by_side_each_with_its_own_attempts_and_cache(cluster, pyflyte):
    def many(xs, **inputs):
        given = [word for name, value in inputs.items() for word in (f"--{name}", str(value))]
        command = ("run", "--remote", *IN_CLUSTER, "example.py", "many", "--xs", str(xs), *given)
        ended = pyflyte(*command, cwd=EXAMPLE, check=-1 not in xs)
        return done(cluster, succeeded=ended.returncode == 0)

    first = many([1, 2, 3], fails=2)
    at_once = spans(first)
    assert list(at_once) == [1, 2, 3]
    assert at_once[1][0] < at_once[3][1]
    assert at_once[3][0] < at_once[1][1]
    tries = {name: len(node.attempts) for name, node in first.nodes.items() if node.parent == "n0-0-dn0"}
    assert tries == {"n0-0-dn0-n0": 1, "n0-0-dn0-n1": 2, "n0-0-dn0-n2": 1}
    again = many([3, 4, 1])
    found = {name: status for name, status in statuses(again).items() if name.startswith("n0-0-dn0-")}
    assert list(found.values()) == [CACHE_HIT, CACHE_POPULATED, CACHE_HIT]
    assert spans(again)[3] == at_once[3]
    in_turn = spans(many([5, 6], parallel=1))
    assert in_turn[5][1] <= in_turn[6][0] or in_turn[6][1] <= in_turn[5][0]
    failed = many([7, -1])
    assert "x = -1: too small" in failed.execution.closure.error.message

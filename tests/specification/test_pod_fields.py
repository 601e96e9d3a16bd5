"""Pods after Flyte's merging: those of every task as it is declared, and of every node as it runs."""

import re

from holding import holds_for_every
from kubernetes.utils.quantity import parse_quantity

from specification import golden, pods
from specification.pods import ACCELERATOR_LABEL, GPU
from specification.serialized import IMAGE, PRIVATE

DECLARED = golden.names("task")
# What runs. A training task as it was declared never does: its plan says what it asks for.
RUNNING = golden.node_identifiers()
PLANNED = [f"{plan}/" for plan in golden.names("plan")]
EVERY_POD = holds_for_every("identifier", [*DECLARED, *RUNNING])
EVERY_RUNNING_POD = holds_for_every("identifier", RUNNING)
INSTANCE_LABEL = "node.kubernetes.io/instance-type"
ZONE_LABEL = "topology.kubernetes.io/zone"
SHARED_MEMORY, SCRATCH = "/dev/shm", "/tmp"
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def pod_of(package, identifier):
    """The pod of a task, or of a node (graph/node)."""
    if "/" not in identifier:
        return pods.merged(package.template(identifier))
    overrides = package.node(identifier).task_node.overrides
    return pods.merged(task_of(package, identifier), overrides)


def task_of(package, identifier):
    if "/" not in identifier:
        return package.template(identifier)
    return package.task_of(package.node(identifier))


def volumes_at(pod, path):
    """What is mounted at a path of the container."""
    names = [mount["name"] for mount in pod.container.get("volumeMounts", []) if mount["mountPath"] == path]
    return [volume for name in names for volume in pod.spec.get("volumes", []) if volume["name"] == name]


def plan_of(identifier):
    """The plan of a node that a plan started; empty for any other."""
    graph = identifier.partition("/")[0]
    return graph if f"{graph}/" in PLANNED else ""


def test_there_are_pods_with_gpus_and_without(package):
    found = [GPU in pod_of(package, identifier).resources("limits") for identifier in RUNNING]
    assert found.count(True) > 5
    assert found.count(False) > 5


@EVERY_POD
def test_a_pod_has_one_container_which_is_the_task(package, identifier):
    pod = pod_of(package, identifier)
    assert [container["name"] for container in pod.spec["containers"]] == [pod.primary]
    assert pod.primary == ("pytorch" if task_of(package, identifier).type == "pytorch" else "primary")
    assert pod.container["image"] == IMAGE
    each = "map-" if plan_of(identifier) and ".benchmark_shard" in task_of(package, identifier).id.name else ""
    assert pod.container["args"][0] == f"pyflyte-{each}execute"
    assert "initContainers" not in pod.spec


@EVERY_POD
def test_names_are_ones_that_kubernetes_takes(package, identifier):
    pod = pod_of(package, identifier)
    volumes = [volume["name"] for volume in pod.spec.get("volumes", [])]
    assert all(_DNS_1123.fullmatch(name) for name in [pod.primary, *volumes])
    assert len(volumes) == len(set(volumes))
    mounted = pod.container.get("volumeMounts", [])
    assert {mount["name"] for mount in mounted} == set(volumes)
    assert len({mount["mountPath"] for mount in mounted}) == len(mounted)
    for key, value in pod.labels.items():
        assert _LABEL.fullmatch(key.rpartition("/")[2])
        assert _LABEL.fullmatch(value)


@EVERY_POD
def test_a_pod_may_do_nothing_that_fine_tuning_does_not_need(package, identifier):
    spec, own = pod_of(package, identifier).spec, pod_of(package, identifier).container["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"].get("runAsUser") != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert not own.get("privileged")
    assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))


@EVERY_POD
def test_the_environment_names_everything_once_and_holds_no_secret(package, identifier):
    names = [entry["name"] for entry in pod_of(package, identifier).container["env"]]
    assert names
    # Kubernetes takes the last of two, so that the order would decide.
    assert len(names) == len(set(names))
    assert not PRIVATE.keys() & set(names)


@EVERY_POD
def test_every_pod_says_how_much_disk_it_needs(package, identifier):
    pod = pod_of(package, identifier)
    disk = parse_quantity(pod.resources("requests")["ephemeral-storage"])
    assert disk > 0
    (scratch,) = volumes_at(pod, SCRATCH)
    # On the node's disk, and counted: a pod that writes more than its limit is evicted.
    assert scratch["emptyDir"].get("medium", "") == ""
    assert 0 < parse_quantity(scratch["emptyDir"]["sizeLimit"]) <= disk


@EVERY_POD
def test_shared_memory_has_at_most_one_owner(package, identifier):
    task, pod = task_of(package, identifier), pod_of(package, identifier)
    # `shared_memory=` beside a template that mounts the path is rejected, by the engine.
    assert not task.extended_resources.HasField("shared_memory")
    if "/" in identifier:
        overrides = package.node(identifier).task_node.overrides
        assert not overrides.extended_resources.HasField("shared_memory")
    owners = volumes_at(pod, SHARED_MEMORY)
    needs_it = task.type == "pytorch" or GPU in pod.resources("limits")
    assert int(needs_it) <= len(owners) <= 1
    for owner in owners:
        assert owner["emptyDir"]["medium"] == "Memory"
        assert parse_quantity(owner["emptyDir"]["sizeLimit"]) > 0


@EVERY_RUNNING_POD
def test_a_pod_that_runs_asks_for_what_it_may_use(package, identifier):
    pod = pod_of(package, identifier)
    requests, limits = pod.resources("requests"), pod.resources("limits")
    assert requests.keys() == limits.keys() >= {"cpu", "memory", "ephemeral-storage"}
    for name, value in requests.items():
        assert 0 < parse_quantity(value) <= parse_quantity(limits[name]), name
    # What is killed first when a node runs out is who uses more than was asked for.
    assert requests["memory"] == limits["memory"]


@EVERY_RUNNING_POD
def test_gpus_are_whole_and_not_shared(package, identifier):
    pod = pod_of(package, identifier)
    assert {"gpu"} & (pod.resources("requests").keys() | pod.resources("limits").keys()) == set()
    if GPU in pod.resources("limits"):
        assert pod.resources("requests")[GPU] == pod.resources("limits")[GPU]
        assert int(pod.resources("limits")[GPU]) > 0


@EVERY_RUNNING_POD
def test_shared_memory_leaves_memory_for_the_rest(package, identifier):
    """What is in /dev/shm counts against the limit of the container."""
    pod = pod_of(package, identifier)
    for owner in volumes_at(pod, SHARED_MEMORY):
        assert parse_quantity(owner["emptyDir"]["sizeLimit"]) < parse_quantity(pod.resources("limits")["memory"])


@EVERY_RUNNING_POD
def test_gpu_nodes_are_for_pods_with_gpus(package, identifier):
    pod = pod_of(package, identifier)
    has_gpus = GPU in pod.resources("limits")
    tolerated = {toleration.get("key") for toleration in pod.spec.get("tolerations", [])}
    assert (GPU in tolerated) == has_gpus
    assert None not in tolerated  # one that tolerates everything
    if not has_gpus:
        assert "affinity" not in pod.spec


@EVERY_RUNNING_POD
def test_a_planned_node_is_of_the_instance_and_the_gpu_of_its_plan(package, identifier):
    pod, task = pod_of(package, identifier), task_of(package, identifier).id.name
    trains = task.startswith(("tasks.train.", "tasks.evaluate.", "tasks.benchmark.benchmark_shard"))
    if not plan_of(identifier) or not trains:
        assert "nodeSelector" not in pod.spec
        return
    instance = plan_of(identifier).partition("x-")[2]
    if instance == "k3s":  # a CPU, which has no label of an accelerator, and the result is measured there too
        assert pod.spec["nodeSelector"] == {INSTANCE_LABEL: instance}
        return
    if task in (
        "tasks.evaluate.evaluate",
        "tasks.benchmark.benchmark_shard",
    ):  # on the cheapest node that holds the result
        instance = f"{instance.partition('.')[0]}.xlarge"
    assert pod.spec["nodeSelector"] == {INSTANCE_LABEL: instance}
    terms = pod.spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (expression,) = terms[0]["matchExpressions"]
    assert expression["key"] == ACCELERATOR_LABEL
    assert len(terms) == len(expression["values"]) == 1
    assert ACCELERATOR_LABEL in {toleration["key"] for toleration in pod.spec["tolerations"]}


@EVERY_RUNNING_POD
def test_the_pods_of_a_job_share_a_zone_and_others_choose_theirs(package, identifier):
    pod = pod_of(package, identifier)
    near = pod.spec.get("affinity", {}).get("podAffinity")
    if task_of(package, identifier).type != "pytorch":
        assert near is None
        return
    assert near is not None
    (term,) = near["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == ZONE_LABEL
    wanted = term["labelSelector"]["matchLabels"]
    # The first pod may only choose its zone because it matches its own affinity.
    assert wanted
    assert wanted.items() <= pod.labels.items()


@EVERY_RUNNING_POD
def test_processes_share_the_cpus_and_nodes_know_their_network(package, identifier):
    pod = pod_of(package, identifier)
    names = {entry["name"] for entry in pod.container["env"]}
    if plan_of(identifier) and GPU in pod.resources("limits"):
        assert "OMP_NUM_THREADS" in names
    if task_of(package, identifier).type == "pytorch":
        assert any(name.startswith("NCCL_") for name in names)

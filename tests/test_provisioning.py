"""What the plan chose is what the nodes ask for, compiled as Flyte compiles what follows a plan."""

from dataclasses import replace

import pytest
from flytekit.extras import accelerators
from planning import compiled, planned

from pod_templates import JOB_LABEL
from tasks import declaring, provisioning
from tasks.declaring import PREPARE_POD
from tasks.platform import Platform
from tasks.provisioning import node_pod, node_resources
from thriftune.hardware import DEVICES
from thriftune.models import architecture as architectures
from thriftune.planning import pod_requests
from thriftune.planning.merging import merging_gib
from workflows.finetune import train_on_plan
from workflows.plan import calibrate_plan

_RESOURCES = {1: "cpu", 2: "gpu", 3: "memory", 5: "ephemeral-storage"}


def task_of(node):
    return node.metadata.name.rpartition(".")[2]


def asked(entries):
    return {_RESOURCES[entry.name]: entry.value for entry in entries}


def overridden(node):
    """What a node asks for in place of its task's declaration: requests, limits, accelerator, pod."""
    overrides = node.task_node.overrides
    accelerator = overrides.extended_resources and overrides.extended_resources.gpu_accelerator.device
    requests, limits = asked(overrides.resources.requests), asked(overrides.resources.limits)
    return requests, limits, accelerator, overrides.pod_template


def volumes(pod):
    return {volume["name"]: volume["emptyDir"] for volume in pod.pod_spec["volumes"]}


@pytest.fixture
def on_platform(monkeypatch):
    """Settings of another platform."""

    def set_up(**settings):
        for module in (provisioning, declaring):
            monkeypatch.setattr(module, "PLATFORM", Platform(**settings))

    return set_up


@pytest.fixture
def three_nodes(run_config):
    hardware = {"device": None, "instance": "g4dn.metal", "nodes": 3}
    return run_config(hardware=hardware, training={"global_batch": 24, "micro_batch": 1, "precision": "fp16"})


@pytest.mark.parametrize(
    ("method", "hardware", "training_task", "gpus", "device"),
    [
        ("full", {"instance": "g4dn.metal", "nodes": 3}, "train_3", "8", "nvidia-tesla-t4"),
        ("full", {"instance": "g5.12xlarge", "nodes": 1}, "train_1", "4", "nvidia-a10g"),
        ("qlora", {"instance": "g6.xlarge"}, "train_in_one_process", "1", "nvidia-l4"),
        ("lora", {"instance": "g6.12xlarge"}, "train_in_one_process", "4", "nvidia-l4"),
    ],
)
def test_gpu_nodes_ask_for_what_the_plan_says(run_config, method, hardware, training_task, gpus, device):
    config = run_config(
        method,
        hardware={"device": None, **hardware},
        training={"global_batch": 24, "micro_batch": 1, "precision": "fp16"},
        evaluation={"saved_model": True},
        strategy="layers" if gpus == "4" and method == "lora" else "auto",
    )
    plan = planned(config)
    on_gpus = [node for node in compiled(train_on_plan, config, plan) if has_gpus(node)]
    assert [task_of(node) for node in on_gpus] == [training_task, "evaluate"]
    # The result is measured on the cheapest node that holds it, of the same kind of GPU.
    assert plan.request.gpus == int(gpus)
    assert plan.of_evaluation.request.gpus == 1
    for node, its in zip(on_gpus, (plan, plan.of_evaluation), strict=True):
        requests, limits, accelerator, pod = overridden(node)
        assert requests == limits
        assert requests == {
            "cpu": str(its.request.cpus),
            "gpu": str(its.request.gpus),
            "memory": f"{its.request.memory_gib}Gi",
            "ephemeral-storage": f"{its.request.disk_gib + 2}Gi",
        }
        assert accelerator == device
        assert pod.pod_spec["nodeSelector"] == {"node.kubernetes.io/instance-type": its.instance}
        assert volumes(pod) == {
            "dshm": {"medium": "Memory", "sizeLimit": f"{its.request.shared_memory_gib}Gi"},
            "scratch": {"sizeLimit": f"{its.request.disk_gib}Gi"},
        }


@pytest.mark.parametrize(
    ("method", "hardware", "name"),
    [
        ("full", {"instance": "g4dn.metal", "nodes": 3}, "calibrate_3"),
        ("qlora", {"instance": "g6.xlarge"}, "calibrate_in_one_process"),
    ],
)
def test_a_calibration_runs_on_the_nodes_of_the_plan(run_config, method, hardware, name):
    training = {"global_batch": 24, "micro_batch": 1, "precision": "fp16"}
    strategy = "zero" if name == "calibrate_3" else "layers"
    config = run_config(method, hardware={"device": None, **hardware}, training=training, strategy=strategy)
    plan = planned(config)
    nodes = compiled(calibrate_plan, config, plan, model_version="1")
    assert [task_of(node) for node in nodes if node.task_node] == ["fetch_model", name, "show_calibrated"]
    (trained,) = (node for node in nodes if has_gpus(node))
    requests, limits, accelerator, pod = overridden(trained)
    assert task_of(trained) == name
    assert requests == limits
    assert requests["gpu"] == str(plan.request.gpus)
    assert accelerator == plan.hardware.accelerator
    assert pod.pod_spec["nodeSelector"] == {"node.kubernetes.io/instance-type": plan.instance}
    assert (JOB_LABEL in (pod.labels or {})) == (plan.nodes > 1)


def test_only_the_pods_of_the_job_on_several_nodes_stay_together(three_nodes):
    nodes = compiled(train_on_plan, three_nodes, planned(three_nodes))
    labels = {task_of(node): (overridden(node)[3].labels or {}) for node in nodes if has_pod(node)}
    assert {name for name, found in labels.items() if JOB_LABEL in found} == {"train_3"}
    affine = {task_of(node) for node in nodes if has_pod(node) and "affinity" in overridden(node)[3].pod_spec}
    assert affine == {"train_3"}


def test_pods_of_a_run_on_cpus_fit_the_node_of_its_plan(run_config):
    """Merging asked for 4 CPUs, of which the sandbox's one node has 3 to give."""
    hardware = {"device": None, "instance": "k3s"}
    config = run_config("qlora", hardware=hardware, evaluation={"saved_model": True}, publish={"repository": "a/b"})
    plan = planned(config)
    nodes = {task_of(node): overridden(node) for node in compiled(train_on_plan, config, plan) if has_pod(node)}
    assert {"train_in_one_process", "evaluate", "fetch_model", "merge_adapter", "publish"} == set(nodes)
    for name, (requests, limits, accelerator, pod) in nodes.items():
        assert requests == limits
        assert int(requests["cpu"]) <= plan.request.cpus == 3, name
        assert (accelerator, requests.get("gpu")) == (None, None)
        on_plan = name in ("train_in_one_process", "evaluate")
        assert pod.pod_spec.get("nodeSelector") == ({"node.kubernetes.io/instance-type": "k3s"} if on_plan else None)
    assert nodes["merge_adapter"][0]["cpu"] == "3"


def has_gpus(node):
    resources = node.task_node.overrides.resources
    return resources is not None and "gpu" in asked(resources.requests)


def has_pod(node):
    return node.task_node.overrides.pod_template is not None


def test_two_runs_of_one_plan_are_two_jobs(three_nodes, monkeypatch):
    plan = planned(three_nodes)

    class Running:
        def __init__(self, name):
            self.execution_id = type("Id", (), {"name": name})()

    jobs = []
    for name in ("a1b2", "a" * 80):
        monkeypatch.setattr(provisioning, "current_context", lambda name=name: Running(name))
        jobs.append(node_pod(plan, as_job=True).labels[JOB_LABEL])
    assert jobs[0] != jobs[1]
    assert all(len(job) <= 63 and job[0].isalnum() and job[-1].isalnum() for job in jobs)


def test_a_platform_with_a_gang_scheduler_marks_the_job(three_nodes, on_platform):
    on_platform(gang="kueue", queue="gpus", one_zone=False)
    pod = node_pod(planned(three_nodes), as_job=True)
    assert pod.annotations["kueue.x-k8s.io/pod-group-total-count"] == "3"
    assert pod.labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert pod.pod_spec.affinity is None


def test_pods_on_a_shared_claim_keep_their_own_folders(three_nodes, on_platform):
    """Threads and NCCL are said by more variables: they once took the name of the pod away."""
    on_platform(scratch="claim:shared")
    pod = node_pod(planned(three_nodes), as_job=True).pod_spec
    variables = {entry.name: entry for entry in pod.containers[0].env}
    assert variables["POD_NAME"].value_from.field_ref.field_path == "metadata.name"
    assert variables["OMP_NUM_THREADS"].value
    (mount,) = [mount for mount in pod.containers[0].volume_mounts if mount.mount_path == "/tmp"]
    assert mount.sub_path_expr == "thriftune/$(POD_NAME)"


def test_a_platform_without_the_labels_of_a_cloud_selects_by_gpus_alone(three_nodes, on_platform):
    on_platform(instance_label="none")
    assert node_pod(planned(three_nodes), as_job=True).pod_spec.node_selector is None


def test_what_needs_no_gpu_asks_for_none_and_for_what_it_holds(run_config):
    config = run_config(
        "qlora", hardware={"device": "T4"}, training={"precision": "fp16"}, publish={"repository": "me/tuned"}
    )
    plan = planned(config)
    nodes = {task_of(node): node for node in compiled(train_on_plan, config, plan)}
    for name, request in {
        "fetch_model": pod_requests.fetching(config, plan),
        "merge_adapter": pod_requests.merging(config, plan),
        "publish": pod_requests.publishing(config, plan),
    }.items():
        requests, limits, accelerator, pod = overridden(nodes[name])
        assert requests["memory"] == limits["memory"] == f"{request.memory_gib}Gi"
        assert requests["ephemeral-storage"] == f"{request.disk_gib + Platform().disk_gib + 2}Gi"
        assert "gpu" not in requests
        assert not accelerator
        assert "nodeSelector" not in pod.pod_spec
        assert "tolerations" not in pod.pod_spec
    assert not has_pod(nodes["prepare_dataset"])  # as it was declared
    assert not has_pod(nodes["summarize"])
    assert PREPARE_POD.options()["requests"].ephemeral_storage == "52Gi"


def test_what_a_model_of_70b_needs_without_a_gpu(run_config):
    """Merging 70B asked for 159 GiB of memory; files of a model go through a download without being held."""
    config = run_config(
        "qlora", model={"source": "meta-llama/Llama-2-70b-hf"}, hardware={"device": "T4"}, lora={"rank": 16}
    )
    plan = planned(config)
    big = type(plan)(**{**vars(plan), "parameters": 68_976_648_192, "trained_parameters": 207_093_760})
    big = replace(big, merging_gib=merging_gib(config, architectures.of(config.model)))
    assert pod_requests.merging(config, big).memory_gib in range(9, 12)
    assert pod_requests.merging(config, big).disk_gib in range(255, 265)
    assert pod_requests.fetching(config, big) == pod_requests.PodRequest(4, 129)
    assert pod_requests.publishing(config, big).disk_gib == 129
    unmerged = run_config("qlora", lora={"merge": False}, hardware={"device": "T4"})
    assert pod_requests.publishing(unmerged, big).disk_gib == 1
    unpacked = run_config("qlora", model={"source": "./tiny.gguf"}, hardware={"device": "T4"})
    assert pod_requests.fetching(unpacked, big).memory_gib > 140


def test_a_node_of_the_plan_is_asked_for_whole(run_config):
    plan = planned(
        run_config(
            hardware={"device": "T4", "instance": "g4dn.12xlarge", "nodes": 1},
            training={"global_batch": 4, "micro_batch": 1},
        )
    )
    resources = node_resources(plan)
    assert (resources.cpu, resources.gpu) == ("47", "4")
    assert 160 < int(resources.mem.removesuffix("Gi")) < 192


def test_the_accelerators_of_the_devices_are_those_of_flyte():
    """A wrong value would select no node, and a pod would wait forever. Flyte has none for a consumer's card."""
    known = {
        given.to_flyte_idl().device
        for given in vars(accelerators).values()
        if isinstance(given, accelerators.BaseAccelerator) and type(given) is not accelerators.BaseAccelerator
    }
    assert len(known) > 10
    named = {name: device.accelerator for name, device in DEVICES.items() if device.accelerator}
    assert set(named.values()) <= known
    assert {name for name in DEVICES if name not in named} == {"RTX-4090", "CPU"}


def test_another_price_is_the_same_run_to_the_cache(three_nodes):
    plan = planned(three_nodes)
    dearer = type(plan)(**{**vars(plan), "price_per_hour": 99.0, "alternatives": [], "prices_as_of": "later"})
    smaller = type(plan)(**{**vars(plan), "micro_batch": 2, "accumulation": 4})
    assert dearer.fingerprint == plan.fingerprint != smaller.fingerprint

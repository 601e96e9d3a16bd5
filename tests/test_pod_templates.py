"""Pod templates: a new object every call, one owner of each thing, and contradictions refused."""

import copy

import pytest
from kubernetes.client import ApiClient

from pod_templates import (
    JOB_LABEL,
    ConflictError,
    in_one_zone,
    on_instance,
    tolerating_gpu_nodes,
    unprivileged,
    with_annotations,
    with_environment,
    with_gang_scheduling,
    with_grace,
    with_scratch,
    with_shared_memory,
)

FACTORIES = {
    "shared memory": lambda t=None: with_shared_memory("1Gi", t),
    "instance": lambda t=None: on_instance("g4dn.metal", t, gpus=8),
    "gpu nodes": tolerating_gpu_nodes,
    "one zone": lambda t=None: in_one_zone("job-1", t),
    "volcano": lambda t=None: with_gang_scheduling("volcano", "job-1", 2, "q", t),
    "coscheduling": lambda t=None: with_gang_scheduling("coscheduling", "job-1", 2, "", t),
    "kueue": lambda t=None: with_gang_scheduling("kueue", "job-1", 2, "q", t),
    "scratch": lambda t=None: with_scratch("10Gi", t, kind="emptyDir"),
    "storage class": lambda t=None: with_scratch("10Gi", t, kind="class", name="nvme"),
    "claim": lambda t=None: with_scratch("10Gi", t, kind="claim", name="shared"),
    "unprivileged": unprivileged,
    "grace": lambda t=None: with_grace(120, t),
    "annotations": lambda t=None: with_annotations({"a": "1"}, t),
    "environment": lambda t=None: with_environment({"A": "1"}, t),
}


def as_dict(template):
    spec = ApiClient().sanitize_for_serialization(template.pod_spec)
    return {"spec": spec, "labels": template.labels, "annotations": template.annotations}


def container(template):
    (only,) = template.pod_spec.containers
    return only


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_a_factory_leaves_what_it_builds_on_alone(make):
    base = with_environment({"B": "2"})
    before = copy.deepcopy(as_dict(base))
    made = make(base)
    assert as_dict(base) == before
    assert as_dict(made) != before
    assert as_dict(make()) == as_dict(make())
    assert make().pod_spec is not make().pod_spec


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_variables_are_added_to_what_a_factory_made_and_take_nothing_away(make):
    """The name of the pod was lost, and all pods of a claim wrote into one folder."""
    before, after = as_dict(make()), as_dict(with_environment({"Z": "1"}, make()))
    added = after["spec"]["containers"][0]["env"].pop()
    if not after["spec"]["containers"][0]["env"]:
        del after["spec"]["containers"][0]["env"]
    assert added == {"name": "Z", "value": "1"}
    assert after == before


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_the_primary_container_stays_the_only_one(make):
    assert container(make()).name == make().primary_container_name == "primary"


def test_shared_memory_is_memory_of_the_given_size():
    template = with_shared_memory("16Gi")
    (volume,) = template.pod_spec.volumes
    (mount,) = container(template).volume_mounts
    assert (volume.empty_dir.medium, volume.empty_dir.size_limit) == ("Memory", "16Gi")
    assert (mount.mount_path, mount.name) == ("/dev/shm", volume.name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FACTORIES["shared memory"], FACTORIES["shared memory"]),
        (FACTORIES["scratch"], FACTORIES["claim"]),
        (FACTORIES["instance"], lambda t: on_instance("g5.xlarge", t)),
        (FACTORIES["one zone"], lambda t: in_one_zone("job-2", t)),
        (FACTORIES["grace"], lambda t: with_grace(30, t)),
        (FACTORIES["volcano"], FACTORIES["coscheduling"]),
        (FACTORIES["environment"], lambda t: with_environment({"A": "2"}, t)),
        (unprivileged, lambda t: unprivileged(t, service_account_token=True)),
    ],
)
def test_what_contradicts_a_template_is_refused_with_both_values(first, second):
    with pytest.raises(ConflictError, match="the template says .* was asked for"):
        second(first())


def test_a_template_without_its_primary_container_is_refused():
    template = with_shared_memory("1Gi")
    template.primary_container_name = "other"
    with pytest.raises(ConflictError, match="Name the container that runs the task"):
        unprivileged(template)


def test_gpu_pods_run_on_tainted_nodes_of_one_type():
    spec = on_instance("g4dn.metal", gpus=8).pod_spec
    (toleration,) = spec.tolerations
    assert (toleration.key, toleration.operator, toleration.effect) == ("nvidia.com/gpu", "Exists", "NoSchedule")
    assert spec.node_selector == {"node.kubernetes.io/instance-type": "g4dn.metal"}


def test_without_gpus_no_taint_is_tolerated_and_without_a_label_no_node_selected():
    assert on_instance("m7i.xlarge").pod_spec.tolerations is None
    assert on_instance("g4dn.metal", gpus=8, label="").pod_spec.node_selector is None
    assert tolerating_gpu_nodes().pod_spec.node_selector is None


def test_pods_of_a_job_follow_each_other_into_a_zone():
    template = in_one_zone("run-abc")
    (term,) = template.pod_spec.affinity.pod_affinity.required_during_scheduling_ignored_during_execution
    assert template.labels == {JOB_LABEL: "run-abc"}
    assert term.label_selector.match_labels == template.labels  # so that the first pod may start it
    assert term.topology_key == "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("scheduler", "name", "labels", "annotations"),
    [
        ("volcano", "volcano", None, {"scheduling.volcano.sh/group-min-member": "3"}),
        ("coscheduling", "scheduler-plugins-scheduler", {"scheduling.x-k8s.io/pod-group": "run-abc"}, None),
        ("kueue", None, {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/pod-group-name": "run-abc"},
         {"kueue.x-k8s.io/pod-group-total-count": "3"}),
    ],
)  # fmt: skip
def test_a_gang_is_marked_as_its_scheduler_knows_it(scheduler, name, labels, annotations):
    template = with_gang_scheduling(scheduler, "run-abc", 3, "gpus")
    assert (template.pod_spec.scheduler_name, template.labels, template.annotations) == (name, labels, annotations)


def test_kueue_needs_a_queue():
    with pytest.raises(ValueError, match="needs a queue"):
        with_gang_scheduling("kueue", "run-abc", 3)


def test_temporary_files_have_room_of_their_own():
    on_disk = as_dict(FACTORIES["scratch"]())["spec"]
    assert on_disk["volumes"] == [{"name": "scratch", "emptyDir": {"sizeLimit": "10Gi"}}]
    assert on_disk["containers"][0]["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]
    of_class = as_dict(FACTORIES["storage class"]())["spec"]["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert of_class["storageClassName"] == "nvme"
    assert of_class["resources"] == {"requests": {"storage": "10Gi"}}


def test_pods_that_share_a_claim_have_a_folder_each():
    pod = as_dict(FACTORIES["claim"]())["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["subPathExpr"] == "thriftune/$(POD_NAME)"
    (variable,) = pod["containers"][0]["env"]
    assert variable == {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert pod["volumes"] == [{"name": "scratch", "persistentVolumeClaim": {"claimName": "shared"}}]


def test_a_pod_has_no_rights():
    """What the `restricted` standard of Kubernetes asks for, field by field."""
    pod = as_dict(unprivileged())["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert as_dict(unprivileged(service_account_token=True))["spec"]["automountServiceAccountToken"] is True

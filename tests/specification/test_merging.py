"""The rules by which Flyte makes a pod, each on the smallest task that shows it."""

import pytest
from flyteidl.core.tasks_pb2 import Container, K8sPod, Resources, TaskTemplate
from flyteidl.core.workflow_pb2 import TaskNodeOverrides

from specification import pods
from specification.pods import GPU

_ENTRY = Resources.ResourceEntry


def a_pod(name="primary", labels=None, **spec):
    pod = K8sPod(primary_container_name=name)
    pod.metadata.labels.update(labels or {})
    pod.pod_spec.update({"containers": [{"name": name, "image": "i"}], **spec})
    return pod


def a_task(kind="python-task", **pod):
    return TaskTemplate(type=kind, k8s_pod=a_pod(**pod), config={"primary_container_name": "primary"})


def gpus(count):
    return Resources(limits=[_ENTRY(name=Resources.GPU, value=count)])


def test_a_template_on_a_node_replaces_the_spec_and_adds_its_labels():
    task = a_task(labels={"of": "task", "both": "task"}, hostNetwork=True)
    node = TaskNodeOverrides(pod_template=a_pod("mine", labels={"both": "node"}, nodeSelector={"a": "b"}))
    pod = pods.merged(task, node)
    assert pod.primary == "mine"
    assert pod.labels == {"of": "task", "both": "node"}
    assert pod.spec["nodeSelector"] == {"a": "b"}
    assert "hostNetwork" not in pod.spec


def test_resources_of_a_node_come_on_top_of_those_of_its_pod_and_fill_requests_and_limits():
    container = {"name": "primary", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    node = TaskNodeOverrides(
        resources=Resources(limits=[_ENTRY(name=Resources.MEMORY, value="2Gi"), _ENTRY(name=Resources.GPU, value="4")])
    )
    pod = pods.merged(a_task(containers=[container]), node)
    assert pod.resources("requests") == {"cpu": "1", "memory": "1Gi", GPU: "4"}
    assert pod.resources("limits") == {"cpu": "1", "memory": "2Gi", GPU: "4"}


def test_an_accelerator_joins_the_affinity_of_a_pod_with_gpus_and_no_other():
    near = {"podAffinity": {"required": []}}
    task = a_task(affinity=near, tolerations=[{"key": GPU}])
    node = TaskNodeOverrides(resources=gpus("1"))
    node.extended_resources.gpu_accelerator.device = "nvidia-l4"
    spec = pods.merged(task, node).spec
    assert spec["affinity"].keys() == {"podAffinity", "nodeAffinity"}
    assert [toleration.get("value") for toleration in spec["tolerations"]] == [None, "nvidia-l4"]
    node.ClearField("resources")
    assert pods.merged(task, node).spec["affinity"] == near


def test_the_container_of_a_job_is_renamed_and_labels_reach_its_workers():
    pod = pods.merged(a_task("pytorch", labels={"job": "a"}))
    assert [container["name"] for container in pod.spec["containers"]] == ["pytorch"]
    assert pod.labels == {"job": "a"}


def test_a_secret_marks_the_pod_for_the_webhook():
    task = a_task()
    assert pods.SECRETS_LABEL not in pods.merged(task).labels
    task.security_context.secrets.add(group="g", key="k")
    assert pods.merged(task).labels[pods.SECRETS_LABEL] == "true"


def test_a_task_without_a_template_has_a_container_of_its_own():
    resources = Resources(requests=[_ENTRY(name=Resources.EPHEMERAL_STORAGE, value="3Gi")])
    task = TaskTemplate(type="python-task", container=Container(image="i", args=["run"], resources=resources))
    pod = pods.merged(task)
    assert (pod.primary, pod.container["args"]) == (pods.GENERATED, ["run"])
    assert pod.resources("limits") == {"ephemeral-storage": "3Gi"}


def test_a_pod_without_its_primary_container_is_refused():
    task = a_task()
    task.config["primary_container_name"] = "other"
    with pytest.raises(ValueError, match="other"):
        pods.merged(task)

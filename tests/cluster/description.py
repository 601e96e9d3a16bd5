"""What a cluster is like: its nodes, its plugins, what its pods are given. The tests have two: CLUSTER and SANDBOX."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from specification.pods import Pod

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_FACTORS = {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "M": 1e6, "G": 1e9, "T": 1e12}
_LARGE = {"cpu": "192", "memory": "2Ti", "ephemeral-storage": "10Ti"}


class UnschedulableError(Exception):
    """No node takes a pod, which would wait until its attempt ends."""


@dataclass(frozen=True)
class Node:
    """A kind of node.

    Attributes:
        labels: Its labels.
        room: What pods can ask of it together, as Kubernetes quantities; what is not named it does not have.
    """

    labels: Mapping[str, str]
    room: Mapping[str, str] = field(default_factory=lambda: _LARGE)


@dataclass(frozen=True)
class Description:
    """What the tests rely on of a cluster.

    Attributes:
        nodes: Its kinds of nodes.
        plugins: Flyte's plugins that are on.
        bucket: The bucket with everything that Flyte keeps.
        variables: What every pod gets, without the store's (`default-env-vars`).
        defaults: What a container asks for that names nothing (`task_resources.defaults`).
        limits: The most that a task may ask for when it is registered (`task_resources.limits`).
        counts_all_alike: Whether a killed pod uses up a task's own retries (`node-config.ignore-retry-cause`).
    """

    nodes: tuple[Node, ...]
    plugins: tuple[str, ...]
    bucket: str = "flyte"
    variables: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=lambda: {"cpu": "2", "memory": "1Gi"})
    limits: Mapping[str, str] = field(default_factory=dict)
    counts_all_alike: bool = False

    def place(self, pod: Pod) -> Node:
        """The node that a pod, the only one of a run at that time, is started on.

        Raises:
            UnschedulableError: There is none; with the reasons, in the scheduler's words.
        """
        asked = {**self.defaults, **pod.resources("requests")}
        obstacles = []
        for node in self.nodes:
            found = _obstacles(node, pod, asked)
            if not found:
                return node
            obstacles += found
        raise UnschedulableError(f"0/{len(self.nodes)} nodes are available: {', '.join(obstacles)}")

    def exceeded(self, pod: Pod) -> str:
        """What flyteadmin says of a task that asks for more than it allows; empty if it does not."""
        asked = pod.resources("limits")
        for name, limit in self.limits.items():
            if name in asked and quantity(asked[name]) > quantity(limit):
                most = f"is greater than current limit set in the platform configuration [{limit}]"
                return f"Requested {name.upper()} limit [{asked[name]}] {most}. Please contact Flyte Admins"
        return ""


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert match, f"{text} is no quantity"
    return float(match[1]) * _FACTORS[match[2]]


def _obstacles(node: Node, pod: Pod, asked: Mapping[str, str]) -> list[str]:
    selected = pod.spec.get("nodeSelector", {})
    wrong = [f"{name}={value}" for name, value in selected.items() if node.labels.get(name) != value]
    found = [f"didn't match Pod's node affinity/selector ({', '.join(wrong)})"] if wrong else []
    if pod.spec.get("affinity", {}).get("nodeAffinity"):
        found.append("didn't match Pod's node affinity/selector (an accelerator)")
    return found + [
        f"Insufficient {name} ({amount} of {node.room.get(name, '0')})"
        for name, amount in asked.items()
        if quantity(amount) > quantity(node.room.get(name, "0"))
    ]


# A cluster of CPU nodes of one type, with the training operator, and Flyte's values of docs/cluster.md.
CLUSTER = Description(
    nodes=(Node({INSTANCE_TYPE: "cpu.small"}),),
    plugins=("container", "sidecar", "k8s-array", "pytorch"),
    counts_all_alike=True,
)
# `flytectl demo start`: the manifests of flyteorg/flyte, docker/sandbox-bundled, and k3s. Of 4 CPUs and 8 GiB,
# of which Linux shows 7.5, the database, the dashboard and the pods of k3s ask for half a CPU and 0.7 GiB.
SANDBOX = Description(
    nodes=(Node({INSTANCE_TYPE: "k3s"}, {"cpu": "3500m", "memory": "6.8Gi", "ephemeral-storage": "37Gi"}),),
    plugins=("container", "sidecar", "k8s-array", "connector-service", "echo"),
    bucket="my-s3-bucket",
    variables={"FLYTE_PLATFORM_URL": "flyte-sandbox-grpc.flyte:8089", "FLYTE_PLATFORM_INSECURE": "true"},
    defaults={"cpu": "500m", "memory": "1Gi"},
)

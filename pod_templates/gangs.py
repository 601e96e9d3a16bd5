"""The pods of a job on several nodes, which only work together."""

from dataclasses import dataclass, field
from typing import Literal

from flytekit import PodTemplate
from kubernetes.client import V1Affinity, V1LabelSelector, V1PodAffinity, V1PodAffinityTerm

from pod_templates.composing import add_entries, copied, set_once

GangScheduler = Literal["volcano", "coscheduling", "kueue"]

# The label of the pods of one job. The training operator's own label holds a name that is not known yet when pods are
# described; this one is, and Flyte passes labels of a template on to every pod of a PyTorchJob.
JOB_LABEL = "thriftune/job"
ZONE_LABEL = "topology.kubernetes.io/zone"


def in_one_zone(job: str, template: PodTemplate | None = None) -> PodTemplate:
    """A pod that runs in the availability zone of the other pods of its job.

    The nodes exchange gradients at every step: across zones this is slower, and each GB costs money. The first pod is
    free to choose a zone (a pod that matches its own affinity may start the group); the others follow it.

    Args:
        job: A label's value (at most 63 characters) that all pods of the job share, and no other pod has.
        template: The template to build on.

    Returns:
        A new template.

    Raises:
        ConflictError: The template belongs to another job, or already has an affinity.
    """
    new, spec, _ = copied(template)
    add_entries(new, "labels", {JOB_LABEL: job})
    term = V1PodAffinityTerm(label_selector=V1LabelSelector(match_labels={JOB_LABEL: job}), topology_key=ZONE_LABEL)
    near = V1PodAffinity(required_during_scheduling_ignored_during_execution=[term])
    set_once(spec, "affinity", V1Affinity(pod_affinity=near))
    return new


@dataclass(frozen=True)
class _Marks:
    """The fields by which a gang scheduler recognizes a gang."""

    scheduler: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


def _marks(job: str, members: int, queue: str) -> dict[GangScheduler, _Marks]:
    """The marks of each gang scheduler.

    For the first two, the training operator makes the pod group (`--gang-scheduler-name`); with coscheduling it
    replaces our name of the group with its own. With kueue, pods keep Kubernetes' scheduler and wait to be admitted.

    Source: https://volcano.sh/en/docs/podgroup/, https://scheduler-plugins.sigs.k8s.io/,
        https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods/
    """
    return {
        "volcano": _Marks("volcano", annotations={"scheduling.volcano.sh/group-min-member": str(members)}),
        "coscheduling": _Marks("scheduler-plugins-scheduler", labels={"scheduling.x-k8s.io/pod-group": job}),
        "kueue": _Marks(
            labels={"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/pod-group-name": job},
            annotations={"kueue.x-k8s.io/pod-group-total-count": str(members)},
        ),
    }


def with_gang_scheduling(
    scheduler: GangScheduler, job: str, members: int, queue: str = "", template: PodTemplate | None = None
) -> PodTemplate:
    """A pod that starts together with all others of its job, or not at all.

    Without it, two jobs that each got half of the nodes wait for each other, at full price, until their rendezvous
    times out.

    Args:
        scheduler: The cluster's gang scheduler: volcano, coscheduling (Kubernetes' scheduler-plugins) or kueue.
        job: A label's value (at most 63 characters) that all pods of the job share, and no other pod has.
        members: Number of pods of the job.
        queue: Kueue's queue to wait in. (The training operator names Volcano's.)
        template: The template to build on.

    Returns:
        A new template.

    Raises:
        ConflictError: The template names another scheduler.
        ValueError: kueue without a queue: it would ignore such a pod.
    """
    if scheduler == "kueue" and not queue:
        raise ValueError("kueue needs a queue: pods without one are not managed by it")
    marks = _marks(job, members, queue)[scheduler]
    new, spec, _ = copied(template)
    if marks.scheduler:
        set_once(spec, "scheduler_name", marks.scheduler)
    add_entries(new, "labels", marks.labels)
    add_entries(new, "annotations", marks.annotations)
    return new

"""The rights of a pod: only those that fine-tuning needs."""

from flytekit import PodTemplate
from kubernetes.client import V1Capabilities, V1PodSecurityContext, V1SeccompProfile, V1SecurityContext

from pod_templates.composing import copied, set_once

# The user of the image (Dockerfile). Volumes belong to its group, so that it can write to them.
USER = 10001


def unprivileged(template: PodTemplate | None = None, *, service_account_token: bool = False) -> PodTemplate:
    """A pod that passes Kubernetes' `restricted` standard, and cannot talk to the Kubernetes API.

    Args:
        template: The template to build on.
        service_account_token: Mount the token of the service account. Buckets do not need it: the clouds' identities
            for pods (IRSA and EKS Pod Identity, GKE and Azure workload identity) bring theirs.

    Returns:
        A new template: not root, no privilege escalation, no capabilities, the runtime's seccomp profile.

    Raises:
        ConflictError: The template says otherwise.

    Source:
        https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    new, spec, container = copied(template)
    set_once(spec, "automount_service_account_token", service_account_token)
    pod = V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=USER,
        run_as_group=USER,
        fs_group=USER,
        # Without it, the kubelet changes the owner of every file of a large volume at each start.
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
    )
    set_once(spec, "security_context", pod)
    own = V1SecurityContext(allow_privilege_escalation=False, capabilities=V1Capabilities(drop=["ALL"]))
    set_once(container, "security_context", own)
    return new

"""What the processes of a training node are told by environment variables: threads, and how NCCL joins the nodes."""

from thriftune.training_plan import TrainingPlan


def node_environment(plan: TrainingPlan, processes: int = 1, nodes: int = 1) -> dict[str, str]:
    """The variables of every process of a node.

    Args:
        plan: The plan.
        processes: Processes on the node.
        nodes: Nodes of the job.

    Returns:
        By name. Nothing about NCCL where no nodes talk to each other.

    Source:
        https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
    """
    threads = max(1, plan.request.cpus // processes)
    # torchrun gives each process one thread, and DeepSpeed's CPU Adam would step offloaded states with one core. A
    # process that counts for itself counts the cores of the machine, not those of its pod.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if plan.hardware.is_gpu and nodes > 1:
        variables |= _NCCL_OVER_ETHERNET
    return variables


# Nodes of this catalogue are joined by Ethernet (AWS ENA), not by InfiniBand, and a pod sees it as eth0.
_NCCL_OVER_ETHERNET = {
    # Looking for InfiniBand finds none, or a device of the host that no pod may use. Only verbs are turned off: a
    # network plugin (EFA's aws-ofi-nccl) is still taken where an image brings one.
    "NCCL_IB_DISABLE": "1",
    # Not the loopback, and not the bridge of a container engine on hosts that have one.
    "NCCL_SOCKET_IFNAME": "^lo,docker",
    # One TCP connection reaches 5 to 10 Gbit/s on ENA. NCCL opens 2 x 8 where it sees Amazon's card, which it does not
    # through the virtual interface of a pod.
    # Source: nccl, src/transport/net_socket.cc (ncclNetSocketGetNsockNthread)
    "NCCL_SOCKET_NTHREADS": "2",
    "NCCL_NSOCKS_PERTHREAD": "8",
    # What went wrong is in the log of the pod; nothing else is.
    "NCCL_DEBUG": "WARN",
}

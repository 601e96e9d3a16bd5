"""Environment variables for the processes of a training node: number of threads, and how NCCL connects the nodes."""

from thriftune.planned_node import PlannedNode


def node_environment(plan: PlannedNode, processes: int = 1, nodes: int = 1) -> dict[str, str]:
    """The variables that every process of a node gets.

    Args:
        plan: The node that was planned, or the plan of a job.
        processes: Processes on the node.
        nodes: Nodes of the job.

    Returns:
        Values by name; nothing about NCCL where no nodes talk to each other.

    Source:
        https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
    """
    threads = max(1, plan.request.cpus // processes)
    # torchrun gives each process one thread, and DeepSpeed's CPU Adam would update offloaded states with one core. A
    # process that counts cores itself counts those of the machine, not those of its pod.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if plan.hardware.is_gpu and nodes > 1:
        variables |= _NCCL_OVER_ETHERNET
    return variables


# The nodes of this catalogue are connected by Ethernet (AWS ENA), not by InfiniBand, and a pod sees it as eth0.
_NCCL_OVER_ETHERNET = {
    # NCCL's search for InfiniBand finds none, or a device of the host that no pod may use. Only verbs are turned off: a
    # network plugin (EFA's aws-ofi-nccl) is still used where an image contains one.
    "NCCL_IB_DISABLE": "1",
    # Neither the loopback nor the bridge of a container engine.
    "NCCL_SOCKET_IFNAME": "^lo,docker",
    # One TCP connection reaches 5 to 10 Gbit/s on ENA. NCCL opens 2 x 8 where it recognizes Amazon's card, but through
    # the virtual interface of a pod it does not.
    # Source: nccl, src/transport/net_socket.cc (ncclNetSocketGetNsockNthread)
    "NCCL_SOCKET_NTHREADS": "2",
    "NCCL_NSOCKS_PERTHREAD": "8",
    # Log what went wrong, and nothing else.
    "NCCL_DEBUG": "WARN",
}

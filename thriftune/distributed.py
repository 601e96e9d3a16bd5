"""Rank and world size: the only place in the library that reads the environment torchrun sets."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from thriftune import container

_Value = TypeVar("_Value")

# Long enough for one rank to download a 70B model to its node while the others wait at the barrier.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """The position of this process among the workers of a job.

    Attributes:
        index: Global rank, 0 to `world_size - 1`.
        local_index: Rank on this node.
        world_size: Number of worker processes on all nodes.
        local_world_size: Number of them on this node; the same on every node.
    """

    index: int
    local_index: int
    world_size: int
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that logs, saves and uploads."""
        return self.index == 0

    @property
    def node(self) -> int:
        """This node, 0 to `nodes - 1`."""
        return self.index // self.local_world_size

    @property
    def nodes(self) -> int:
        """Machines of the job."""
        return self.world_size // self.local_world_size


def current_rank() -> Rank:
    """The rank that torchrun or Flyte's Elastic plugin gave this process; a lone process is rank 0 of 1."""
    return Rank(
        index=int(os.environ.get("RANK", "0")),
        local_index=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def threads_of_node() -> int:
    """Threads that the processes of this node may have together: what is set for one of them, or the node's CPUs."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else max(1, int(container.cpus()))


def alone() -> dict[str, str]:
    """What the environment of a process says that is a job of its own: of one process, on a port that is free."""
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # torch takes one that is free; nobody else has to know it
    }


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed to train on the CPU with gloo only. Must run before deepspeed is imported."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed import ops

    # Left alone, it compiles an operator for minutes before the first step. Only tensor-parallel inference uses that
    # operator; ZeRO goes through torch.distributed. (deepspeed 0.19, comm/torch.py: build_shm_op,
    # inference_all_reduce)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def join(backend: str) -> Rank:
    """Join the process group of this job, once.

    Args:
        backend: `nccl` on GPUs, `gloo` on CPU, or both by the device of a tensor: `cpu:gloo,cuda:nccl`.

    Returns:
        This process's rank.
    """
    import torch.distributed as dist

    device = None
    if "nccl" in backend:
        import torch

        # Without a device NCCL guesses: the same GPU for every rank in the first collective, and in a barrier the GPU
        # with the number of the global rank, which a second node does not have.
        device = torch.device("cuda", current_rank().local_index)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=device)
    return current_rank()


def leave() -> None:
    """Leave the process group when every rank is done.

    A process that exits while its collective threads are alive is sometimes aborted ("terminate called without an
    active exception"), and a finished job would count as failed.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank of the job; returns at once in a lone process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def once_per_node(action: Callable[[], None]) -> None:
    """Run a function on local rank 0 of every node while the other ranks wait.

    Flyte gives every rank the same local path of a directory that is not downloaded yet: without this they would all
    download into one folder at once.

    Args:
        action: The function to run.
    """
    if current_rank().local_index == 0:
        action()
    barrier()


def gather_objects(value: _Value) -> list[_Value]:
    """Gather the `value` of every rank, in rank order."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], _Value]) -> _Value:
    """Call `make` on rank 0 and return its result on every rank; what it raises is raised on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return make()
    made: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:  # noqa: BLE001 - raised below, on every rank
            made[1] = error
    dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    value: _Value = made[0]
    return value


def mean(value: float) -> float:
    """The mean of a value over all ranks; NaN if the value of any rank is."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float32, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set on any rank. A collective of a few bytes."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return flags
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX)
    return tuple(bool(count) for count in counts.tolist())

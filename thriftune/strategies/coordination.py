"""What the devices of a training do besides computing: they exchange data, wait for each other, and use the host."""

from dataclasses import dataclass

# Share of the exchange that runs beside computation where a strategy begins it early. An assumption: collectives of
# GPUs without links of their own take part of the memory's time, and the first and the last one run beside nothing.
OVERLAPPED = 0.7


@dataclass(frozen=True)
class Coordination:
    """What each device does besides computing in one optimizer step.

    Attributes:
        between: Bytes that it sends to other devices; it receives as many.
        host: Bytes that it exchanges with its host's memory, in the direction that has more of them.
        updated_on_host: Parameters that its process updates on the host's CPU.
        updated: Parameters that it updates itself.
        overlapped: Share of the exchange that can run while the device computes, from 0 to 1.
        at_a_time: How many of the devices of a node compute at the same time; 0 for all of them.
        visits: How often the host gathers and frees one weight, where it does so for each one by itself.
    """

    between: int = 0
    host: int = 0
    updated_on_host: int = 0
    updated: int = 0
    overlapped: float = 0.0
    at_a_time: int = 0
    visits: int = 0


def of_ring(size: int, ranks: int) -> int:
    """Bytes that each rank sends to gather, or to sum and divide, something of a size in a ring; twice for both.

    Args:
        size: Bytes of the whole.
        ranks: Number of ranks.

    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms (2009),
        https://doi.org/10.1016/j.jpdc.2008.09.002; NCCL's rings.
    """
    return size * (ranks - 1) // ranks

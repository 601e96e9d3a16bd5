"""Whether a run fits, from an estimate and its error: it fits, it may fit, or it does not.

How far an estimate may be off differs by item. What lasts from step to step is counted, and was within 1 % wherever it
was measured; activations follow the model's own code; what torch's allocator holds beyond tensors depends on the order
of sizes that it is asked for, and is the least certain part. See docs/memory.md.
"""

from collections.abc import Mapping

from thriftune.overhead import COLLECTIVES, CONTEXT, FRAGMENTATION, MARGIN
from thriftune.strategies.memory.items import LASTING
from thriftune.training_plan import Answer, Estimate, Verdict

# Shares by which an item may be less or more than it is predicted. Sources: tests/memory/test_published.py.
_OF_ITEMS = {
    **dict.fromkeys(LASTING, (0.01, 0.01)),
    CONTEXT: (0.25, 0.25),
    COLLECTIVES: (1.0, 1.0),
    # 0.05 to 0.47 of what comes and goes was seen; over 0.40 only where the GPU had room, so that torch gave none back.
    MARGIN: (1 - 0.05 / FRAGMENTATION, 0.40 / FRAGMENTATION - 1),
}
# Runs of this stack on GPUs were from 1 % below to 4 % above what was predicted (docs/memory.md).
_OF_OTHERS = (0.01, 0.05)
# On a CPU, of the sum: 57 measured runs needed from 5 % more to 11 % less than predicted. For hosts and disks, which
# hold the same buffers and files, this is an assumption.
_OF_SUMS = (0.11, 1 / 0.95 - 1)

_CALIBRATION = (
    "a run of three steps there (training.max_steps: 3) measures it: its metrics show planned and measured memory"
)


def band(items: Mapping[str, float]) -> tuple[float, float]:
    """The least and the most that a GPU, a worker, a host or a disk may need, in the unit of its items.

    Args:
        items: What it is predicted to need, by item.
    """
    if CONTEXT not in items:
        least, most = _OF_SUMS
        predicted = sum(items.values())
        return predicted * (1 - least), predicted * (1 + most)
    errors = {item: _OF_ITEMS.get(item, _OF_OTHERS) for item in items}
    low = sum(size * (1 - errors[item][0]) for item, size in items.items())
    return low, sum(size * (1 + errors[item][1]) for item, size in items.items())


def judge(estimate: Estimate, device_gib: float, host_gib: float, disk_gib: float, *, micro_batch: int = 1) -> Verdict:
    """Whether a run fits its machines.

    Args:
        estimate: What it is predicted to need.
        device_gib: GiB of each GPU, or of a worker's part of the host on a CPU.
        host_gib: GiB of the host's memory that a pod can have.
        disk_gib: GiB of the local disk; infinite where it is not known.
        micro_batch: Rows at a time, which could be fewer.

    Returns:
        The answer about what is nearest to its limit, or furthest beyond it.
    """
    is_gpu = CONTEXT in estimate.device
    places = [
        *(("each GPU" if is_gpu else "each worker", items, device_gib) for items in estimate.devices),
        ("the host", {**estimate.host, "shared memory": estimate.shared_memory_gib}, host_gib),
        ("the local disk", estimate.disk, disk_gib),
    ]
    order = ("fits", "uncertain", "does not fit")
    verdicts = [_of(*place, micro_batch) for place in places]
    return max(verdicts, key=lambda verdict: (order.index(verdict.answer), verdict.share))


def _of(where: str, items: Mapping[str, float], limit: float, micro_batch: int) -> Verdict:
    low, high = band(items)
    answer: Answer = "fits" if high <= limit else "uncertain" if low <= limit else "does not fit"
    return Verdict(answer, where, low, high, limit, _settling(answer, where, micro_batch))


def sentence(verdict: Verdict) -> str:
    """The numbers behind a verdict, and what would settle an uncertain one.

    Args:
        verdict: The verdict.
    """
    numbers = f"{verdict.where} needs {verdict.low_gib:.1f} to {verdict.high_gib:.1f} of {verdict.limit_gib:.1f} GiB"
    return f"{numbers}; {verdict.settles}" if verdict.settles else numbers


def _settling(answer: Answer, where: str, micro_batch: int) -> str:
    """What would settle an uncertain answer, as a clause; empty for the others."""
    if answer != "uncertain":
        return ""
    is_device = where.startswith("each")
    smaller = "a smaller training.micro_batch needs less; " if is_device and micro_batch > 1 else ""
    return smaller + _CALIBRATION


def fits(items: Mapping[str, float], limit: float) -> bool:
    """Whether a device has room for the most that items may need.

    Args:
        items: What it is predicted to need, by item.
        limit: What it has, in the same unit.
    """
    return band(items)[1] <= limit


def largest(items: Mapping[str, float], count: int = 3) -> str:
    """The largest of some items, as text.

    Args:
        items: GiB by item.
        count: How many.
    """
    ordered = sorted(items.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {gib:.1f}" for name, gib in ordered if gib >= 0.05)

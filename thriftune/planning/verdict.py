"""Whether a run fits, from an estimate and its error: it fits, it may fit, or it does not.

How far an estimate may be off differs by item. What lasts from step to step is counted, and was within 1 % wherever it
was measured; activations follow the model's own code; what torch's allocator holds beyond tensors depends on the order
of sizes that it is asked for, and is the least certain part. See docs/memory.md.

What earlier runs held corrects the least and the most, and nothing else: the items stay what they are computed as, so
that they add up, a part that is too large is not drawn as a negative one, and the next record is compared with what the
plan would have said without corrections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from thriftune.overhead import COLLECTIVES, CONTEXT, FRAGMENTATION, MARGIN
from thriftune.planning.ledger import Correction, Evidence, Quantity
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

# What a GPU holds beside torch's allocator, which a record has as one number.
_BESIDE = (CONTEXT, COLLECTIVES)
CALIBRATION = "`pyflyte run workflows/plan.py calibrate --config ...` measures it there in three steps"


@dataclass(frozen=True)
class Span:
    """The least and the most that something may need.

    Attributes:
        low: The least.
        high: The most.
        leans_on: The runs that corrected them; empty if none did.
    """

    low: float
    high: float
    leans_on: str = ""


def band(items: Mapping[str, float]) -> tuple[float, float]:
    """The least and the most that a GPU, a worker, a host or a disk may need, in the unit of its items.

    Args:
        items: What it is predicted to need, by item.
    """
    if CONTEXT in items:
        return _band_of(items)
    least, most = _OF_SUMS
    predicted = sum(items.values())
    return predicted * (1 - least), predicted * (1 + most)


def _band_of(items: Mapping[str, float]) -> tuple[float, float]:
    """The same of some items of a GPU."""
    errors = {item: _OF_ITEMS.get(item, _OF_OTHERS) for item in items}
    low = sum(size * (1 - errors[item][0]) for item, size in items.items())
    return low, sum(size * (1 + errors[item][1]) for item, size in items.items())


def needs(items: Mapping[str, float], evidence: Evidence | None) -> Span:
    """The least and the most that a GPU, or a worker on a CPU, may need, as far as runs have shown it.

    Args:
        items: GiB that it is predicted to need, by item.
        evidence: What runs have shown; None for nothing.
    """
    low, high = band(items)
    if evidence is None:
        return Span(low, high)
    corrected = [_corrected(part, quantity, evidence) for quantity, part in _measurable(items).items()]
    said = [correction.leans_on for correction, _ in corrected if correction.count]
    if not said:
        return Span(low, high)
    bounds = [found for _, found in corrected]
    # The part that says the most comes first: what torch holds, or a whole worker.
    return Span(sum(least for least, _ in bounds), sum(most for _, most in bounds), said[0])


def _measurable(items: Mapping[str, float]) -> dict[Quantity, dict[str, float]]:
    """The items that a measured quantity consists of."""
    if CONTEXT not in items:
        return {"allocated_gib": dict(items)}
    beside = {item: size for item, size in items.items() if item in _BESIDE}
    held = {item: size for item, size in items.items() if item not in _BESIDE}
    return {"reserved_gib": held, "context_gib": beside}


def _corrected(
    items: Mapping[str, float], quantity: Quantity, evidence: Evidence
) -> tuple[Correction, tuple[float, float]]:
    predicted = sum(items.values())
    low, high = band(items) if quantity == "allocated_gib" else _band_of(items)
    correction = evidence.correction(quantity, (low / predicted, high / predicted))
    if not correction.count:
        return correction, (low, high)
    return correction, (predicted * correction.low, predicted * correction.high)


def judge(
    estimate: Estimate,
    device_gib: float,
    host_gib: float,
    disk_gib: float,
    *,
    micro_batch: int = 1,
    evidence: Evidence | None = None,
) -> Verdict:
    """Whether a run fits its machines.

    Args:
        estimate: What it is predicted to need.
        device_gib: GiB of each GPU, or of a worker's part of the host on a CPU.
        host_gib: GiB of the host's memory that a pod can have.
        disk_gib: GiB of the local disk; infinite where it is not known.
        micro_batch: Rows at a time, which could be fewer.
        evidence: What runs have shown; None for nothing.

    Returns:
        The answer about what is nearest to its limit, or furthest beyond it.
    """
    is_gpu = CONTEXT in estimate.device
    where = "each GPU" if is_gpu else "each worker"
    shared = {"shared memory": estimate.shared_memory_gib}
    # On a CPU the host holds the workers, so what they were measured to hold says the same of it.
    host = needs({**estimate.host, **shared}, None if is_gpu else evidence)
    verdicts = [
        *(_of(where, needs(items, evidence), device_gib, micro_batch) for items in estimate.devices),
        _of("the host", host, host_gib, micro_batch),
        _of("the local disk", needs(estimate.disk, None), disk_gib, micro_batch),
    ]
    if evidence is not None and (tried := _tried(where, verdicts[0], evidence)) is not None:
        verdicts = [tried, *verdicts[len(estimate.devices) :]]
    order = ("fits", "uncertain", "does not fit")
    return max(verdicts, key=lambda verdict: (order.index(verdict.answer), verdict.share))


def _of(where: str, needed: Span, limit: float, micro_batch: int) -> Verdict:
    answer: Answer = "fits" if needed.high <= limit else "uncertain" if needed.low <= limit else "does not fit"
    settles = _settling(answer, where, micro_batch)
    return Verdict(answer, where, needed.low, needed.high, limit, settles, needed.leans_on)


def _tried(where: str, predicted: Verdict, evidence: Evidence) -> Verdict | None:
    """The answer of a calibration of exactly this plan; None if there is none."""
    record = evidence.trial()
    if record is None or record.trial is None:
        return None
    limit, said = predicted.limit_gib, f"a calibration on {record.setup.instance}, {record.when:%Y-%m-%d}"
    if record.trial.ran_out:
        low, high = max(limit, predicted.low_gib), max(limit, predicted.high_gib)
        return Verdict("does not fit", where, low, high, limit, leans_on=f"{said}, ran out of memory")
    measured = record.measured
    # On a CPU, where nothing is reserved, a worker's own memory.
    held = measured.allocated_gib if measured.reserved_gib is None else measured.reserved_gib
    if held is None:
        return None
    gib = held + (measured.context_gib or 0.0)
    answer: Answer = "fits" if gib <= limit else "does not fit"
    return Verdict(answer, where, gib, gib, limit, leans_on=f"measured: {said}")


def sentence(verdict: Verdict) -> str:
    """The numbers behind a verdict, and what would settle an uncertain one.

    Args:
        verdict: The verdict.
    """
    return "; ".join(filter(None, [numbers(verdict), verdict.settles]))


def numbers(verdict: Verdict) -> str:
    """The numbers behind a verdict, and the runs that they lean on.

    Args:
        verdict: The verdict.
    """
    low, high, limit = (f"{gib:.1f}" for gib in (verdict.low_gib, verdict.high_gib, verdict.limit_gib))
    span = low if low == high else f"{low} to {high}"
    return "; ".join(filter(None, [f"{verdict.where} needs {span} of {limit} GiB", verdict.leans_on]))


def advising(verdict: Verdict, changes: Sequence[str]) -> Verdict:
    """An uncertain verdict that also names changes of the run with which it surely fits.

    Args:
        verdict: The verdict.
        changes: Changes, as sentences.
    """
    if not changes:
        return verdict
    nearest = ", or ".join(change.removesuffix(".") for change in changes)
    return replace(verdict, settles=f"{verdict.settles}; nearest changes that surely fit: {nearest}")


def _settling(answer: Answer, where: str, micro_batch: int) -> str:
    """What would settle an uncertain answer, as a clause; empty for the others."""
    if answer != "uncertain":
        return ""
    is_device = where.startswith("each")
    smaller = "a smaller training.micro_batch needs less; " if is_device and micro_batch > 1 else ""
    return smaller + CALIBRATION


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

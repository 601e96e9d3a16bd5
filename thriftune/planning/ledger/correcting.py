"""Correct what a plan says by what earlier runs measured: robustly, and only as far as there is evidence.

A planned quantity is off by an unknown factor, whose logarithm is taken as normal: around 0, within the plan's own
error. Each record says by how much another run was off. Records are weighed by how alike their runs are to the planned
one, and what lies far from the others pulls with a bounded force (Huber). Without records nothing changes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from thriftune.planning.ledger.record import Quantity, Record, Setup

FROM_DATASHEETS = "from datasheets"

# What a record counts whose run differs in one of these. Assumed.
_OTHER = {"strategy": 0.25, "method": 0.5, "family": 0.5, "precision": 0.5}
_OTHER_MACHINES = 0.5
_OTHER_VERSION = 0.5  # of each library
# The plan's error is taken as 90 % likely: this many standard deviations of a normal distribution.
_DEVIATIONS = 1.645
# Share of a plan's error, as standard deviations, by which two runs of the same setup differ. Assumed, with the weight
# of so many runs; what the records show takes its place.
_SPREAD, _SPREAD_COUNTS = 0.5, 4.0
# No two runs are expected to be closer than this.
_LEAST_SPREAD = 0.02
# Standard deviations from which a record pulls no harder: 95 % as good as a mean if there are no outliers.
# Source: P. J. Huber, Robust Estimation of a Location Parameter (1964)
_HUBER = 1.345
# The median of absolute deviations, times this, is the standard deviation of a normal distribution.
_FROM_MEDIAN = 1.4826
_BISECTIONS = 60
_SHOWN = 3


@dataclass(frozen=True)
class Correction:
    """What records say of a quantity: factors for what the plan says without them.

    Attributes:
        factor: The most likely one.
        low: Lower end of its interval, which is 90 % likely if the plan's error is.
        high: Upper end.
        leans_on: Where it comes from, for people: `measured: 4 runs on g4dn.metal`, or `from datasheets`.
        count: Number of records that it is made of.
    """

    factor: float
    low: float
    high: float
    leans_on: str
    count: int


@dataclass(frozen=True)
class _Evidence:
    """A record's ratio, as a logarithm, and what it counts."""

    ratio: float
    weight: float


def correct(
    records: Iterable[Record], setup: Setup, quantity: Quantity, error: tuple[float, float] = (0.7, 1.4)
) -> Correction:
    """Correct a planned quantity by the records of runs that are alike.

    Args:
        records: The records of a ledger, in any order.
        setup: What the planned run trains on and how.
        quantity: What is planned.
        error: The plan's own error: factors of what it says, between which the truth is 90 % likely.

    Returns:
        The correction; without records that say anything of it, a factor of 1 and the plan's own error.

    Raises:
        ValueError: The error is not an interval around 1.
    """
    if not 0 < error[0] <= 1 <= error[1] < math.inf:
        raise ValueError(f"{error} is not an interval around 1.")
    deviation = math.log(error[1] / error[0]) / 2 / _DEVIATIONS
    pairs = [(record, ratio) for record in records if (ratio := record.ratio(quantity)) is not None]
    weights = _weights([record for record, _ in pairs], setup)
    counted = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if weight > 0]
    if not counted or not deviation:
        return Correction(1.0, *error, FROM_DATASHEETS, 0)
    evidence = sorted((_Evidence(math.log(ratio), weight) for (_, ratio), weight in counted), key=astuple)
    location, share = _posterior(evidence, deviation)
    factor = math.exp(location)
    said = _said([(record, weight) for (record, _), weight in counted])
    return Correction(factor, factor * error[0] ** share, factor * error[1] ** share, said, len(counted))


def _weights(records: Sequence[Record], setup: Setup) -> list[float]:
    """What each record counts: at most 1; 0 for another device.

    Records of one other kind are wrong together: however many there are, they count no more than `each / (1 - each)`.
    """
    kinds = defaultdict(list)
    for record in records:
        kinds[repr(record.setup)].append(record)
    weights = {}
    for kind, alike in kinds.items():
        each = _likeness(alike[0].setup, setup)
        weights[kind] = each / (1 + (len(alike) - 1) * (1 - each))
    return [weights[repr(record.setup)] for record in records]


def _likeness(one: Setup, other: Setup) -> float:
    """How much a run of one setup says about a run of another: from 0 to 1."""
    if one.device != other.device:
        return 0.0
    differing = [share for name, share in _OTHER.items() if getattr(one, name) != getattr(other, name)]
    if _machines(one) != _machines(other):
        differing.append(_OTHER_MACHINES)
    names = one.versions.keys() | other.versions.keys()
    differing += [_OTHER_VERSION for name in names if one.versions.get(name) != other.versions.get(name)]
    return math.prod(differing)


def _machines(setup: Setup) -> tuple[str, int, int]:
    return setup.instance, setup.nodes, setup.devices_per_node


def _posterior(evidence: Sequence[_Evidence], deviation: float) -> tuple[float, float]:
    """The most likely logarithm of the factor, and the width of its interval as a share of the plan's own.

    Args:
        evidence: What the records say, sorted.
        deviation: The plan's error, as a standard deviation.
    """
    spread = _SPREAD * deviation
    prior = deviation**2 - spread**2  # what all runs of a setup have in common
    location = _location(evidence, spread, prior)
    weight = math.fsum(one.weight for one in evidence)
    seen = _FROM_MEDIAN * _median([_Evidence(abs(one.ratio - location), one.weight) for one in evidence])
    variance = (_SPREAD_COUNTS * spread**2 + weight * seen**2) / (_SPREAD_COUNTS + weight)
    variance = max(variance, _LEAST_SPREAD**2)
    # The next run is off by what all have in common, as far as that is unknown, and by its own part.
    expected = 1 / (1 / prior + weight / variance) + variance
    return location, min(1.0, math.sqrt(expected) / deviation)


def _location(evidence: Sequence[_Evidence], spread: float, prior: float) -> float:
    """Where the pulls of the records and of the plan, which pulls towards 0, are in balance."""

    def pull(at: float) -> float:
        steps = (one.weight * max(-_HUBER, min(_HUBER, (one.ratio - at) / spread)) for one in evidence)
        return math.fsum(steps) / spread - at / prior

    low, high = min(0.0, evidence[0].ratio), max(0.0, evidence[-1].ratio)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) > 0 else (low, middle)
    return (low + high) / 2


def _median(values: Sequence[_Evidence]) -> float:
    """The weighted median of their ratios."""
    ordered, half = sorted(values, key=astuple), math.fsum(one.weight for one in values) / 2
    passed = 0.0
    for one in ordered:
        passed += one.weight
        if passed >= half:
            return one.ratio
    return ordered[-1].ratio


def _said(counted: Sequence[tuple[Record, float]]) -> str:
    """Which runs a correction leans on: those of the same setup first, then those that are alike."""
    same = Counter(record.setup.instance for record, weight in counted if weight == 1)
    alike = Counter(record.setup.instance for record, weight in counted if weight < 1)
    parts = [_runs(same, "run"), _runs(alike, "similar run")]
    return f"measured: {' and '.join(filter(None, parts))}"


def _runs(by_instance: Counter[str], noun: str) -> str:
    """4 runs on g4dn.metal, 2 on g5.xlarge."""
    if not by_instance:
        return ""
    ordered = sorted(by_instance.items(), key=lambda item: (-item[1], item[0]))
    first, *others = [f"{number} on {name}" for name, number in ordered[:_SHOWN]]
    number, place = first.split(" ", 1)
    more = [f"{sum(n for _, n in ordered[_SHOWN:])} on others"] if len(ordered) > _SHOWN else []
    return ", ".join([f"{number} {noun}{'' if number == '1' else 's'} {place}", *others, *more])

"""Which trials of a sweep share a node, and which node that is.

A trial that fits one device is packed: k of them are trained at a time on the k devices of one node, each in a process
of its own. A trial that needs more has a node of its own, which its plan names.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

from thriftune.overhead import GIB
from thriftune.planned_node import EvaluationNode, NodeRequest
from thriftune.planning.offers import DISK_BESIDE_GIB, Offer
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

_ONE_BASE: Mapping[int, str] = MappingProxyType({})
_HALF = 2  # bytes of a weight in 16 bits, as the base model is on the disk


@dataclass(frozen=True)
class PlannedPack:
    """Trials for one node.

    Attributes:
        node: The node, with as many devices as there are trials at a time.
        slots: Most trials at a time; the others wait for a device that is free.
        numbers: Numbers of the trials.
    """

    node: EvaluationNode
    slots: int
    numbers: list[int]

    @property
    def waves(self) -> int:
        """How often its slots are filled, one after the other."""
        return math.ceil(len(self.numbers) / self.slots)


@dataclass(frozen=True)
class Need:
    """The most that one trial of a pack needs of its node.

    Attributes:
        cpus: Virtual CPUs.
        memory_gib: Host memory.
        shared_memory_gib: Part of it that must fit /dev/shm.
        models_gib: Disk for the base models, each of which is there once.
        disk_gib: Disk for each trial besides.
    """

    cpus: int
    memory_gib: float
    shared_memory_gib: float
    models_gib: float
    disk_gib: float

    @classmethod
    def of(cls, plans: Mapping[int, TrainingPlan], bases: Mapping[int, str]) -> "Need":
        """The most that any of some trials needs.

        Args:
            plans: Their plans, by number.
            bases: What the base model of each is known by; those that are not named have the same one.
        """
        found = plans.values()
        sizes = {bases.get(number, ""): _base_gib(plan) for number, plan in plans.items()}
        return cls(
            cpus=1,
            memory_gib=max(plan.memory.host_gib for plan in found),
            shared_memory_gib=max(plan.memory.shared_memory_gib for plan in found),
            models_gib=sum(sizes.values()),
            disk_gib=max(max(0.0, plan.memory.disk_gib - _base_gib(plan)) for plan in found),
        )

    def times_on(self, offer: Offer) -> int:
        """How many such trials a machine holds at a time, by its host memory, its CPUs and its disk.

        Args:
            offer: The machine.
        """
        counts = [offer.cpus // self.cpus, math.floor(offer.host_gib / (self.memory_gib + self.shared_memory_gib))]
        if offer.disk_gib and self.disk_gib:
            counts.append(math.floor((offer.disk_gib - self.models_gib) / self.disk_gib))
        return max(0, min([*counts, offer.gpus] if offer.gpus else counts))


def is_packed(plan: TrainingPlan) -> bool:
    """Whether a trial shares a node: it needs one device."""
    return plan.nodes == 1 and plan.devices_per_node == 1


def share_of(parallel: int | None, part: int, whole: int) -> int | None:
    """How many of some trials may run at a time beside the others; at least one, and None for all.

    Args:
        parallel: Most trials at a time; None for all.
        part: Number of these trials.
        whole: Number of all trials.
    """
    return None if parallel is None else max(1, parallel * part // whole)


def packed(
    plans: Mapping[int, TrainingPlan],
    machines: Mapping[str, Sequence[Offer]],
    parallel: int | None,
    bases: Mapping[int, str] = _ONE_BASE,
) -> list[PlannedPack]:
    """Pack trials on the nodes of a catalogue: those on which all of them together cost least.

    Args:
        plans: Plans of trials that need one device, by their numbers.
        machines: Node types that they may have, by the name of the device.
        parallel: Most trials at a time; None for all.
        bases: As in `Need.of`.

    Returns:
        The packs, of which no more trials run at a time than `parallel`.
    """
    packs: list[PlannedPack] = []
    for device in sorted({plan.device for plan in plans.values()}):
        group = {number: plan for number, plan in plans.items() if plan.device == device}
        share = share_of(parallel, len(group), len(plans))
        made = [packs_on(offer, group, share, bases) for offer in machines[device] if _is_enough(offer, group)]
        found = [one for one in made if one]
        cheapest = min(found, key=_rank, default=None)
        packs += cheapest or _where_planned(group, machines[device], share, bases)
    return packs


def _where_planned(
    plans: Mapping[int, TrainingPlan], machines: Sequence[Offer], parallel: int | None, bases: Mapping[int, str]
) -> list[PlannedPack]:
    """Each trial on the node type of its plan, where no one type holds all of them."""
    offers = {offer.name: offer for offer in machines}
    packs: list[PlannedPack] = []
    for instance in sorted({plan.instance for plan in plans.values()}):
        group = {number: plan for number, plan in plans.items() if plan.instance == instance}
        share = share_of(parallel, len(group), len(plans))
        packs += packs_on(offers[instance], group, share, bases)
    return packs


def packed_here(
    plans: Mapping[int, TrainingPlan], here: Offer, parallel: int | None, bases: Mapping[int, str] = _ONE_BASE
) -> list[PlannedPack]:
    """Pack trials on this machine; fewer at a time than were asked for where its memory holds no more.

    Args:
        plans: Plans of trials that need one device, by their numbers.
        here: This machine. On a CPU, a trial at a time counts as a device, and several may share a core.
        parallel: Most trials at a time; None for as many as there are devices.
        bases: As in `Need.of`.
    """
    if not plans:
        return []
    wanted = min(len(plans), parallel or here.gpus or here.cpus, here.gpus or len(plans))
    need = Need.of(plans, bases)
    machine = here if here.gpus else replace(here, cpus=max(here.cpus, wanted))
    slots = max(1, min(wanted, need.times_on(machine)))
    if slots < wanted:
        logger.warning(
            "%d trials at a time instead of %d: each needs %.1f GiB of memory and %.1f GiB of disk, and this machine "
            "has %.1f and %.1f free", slots, wanted, need.memory_gib, need.disk_gib, here.host_gib, here.disk_gib,
        )  # fmt: skip
    return [PlannedPack(_node(machine, need, plans, slots), slots, sorted(plans))]


def packs_on(
    offer: Offer, plans: Mapping[int, TrainingPlan], parallel: int | None, bases: Mapping[int, str] = _ONE_BASE
) -> list[PlannedPack]:
    """The packs of trials on nodes of one type, of which each has about as many; none if no trial fits one.

    Args:
        offer: The node type. Of one's own there may be no second one.
        plans: Plans of trials that need one device, by their numbers.
        parallel: Most trials at a time; None for all.
        bases: As in `Need.of`.
    """
    need, wanted = Need.of(plans, bases), min(parallel or len(plans), len(plans))
    was_planned = all(plan.instance == offer.name for plan in plans.values())
    at_once = max(need.times_on(offer), int(was_planned))  # the planner knows better what fits beside nothing else
    if not at_once:
        return []
    count = 1 if offer.is_own else math.ceil(wanted / at_once)
    wanted = min(wanted, count * at_once)
    sizes = [wanted // count + (index < wanted % count) for index in range(count)]
    ends = [round(len(plans) * total / wanted) for total in accumulate(sizes)]
    numbers = sorted(plans)
    return [
        PlannedPack(_node(offer, need, plans, slots), slots, numbers[first:last])
        for slots, first, last in zip(sizes, [0, *ends], ends, strict=False)
    ]


def on_pack(plan: TrainingPlan, pack: PlannedPack) -> TrainingPlan:
    """The plan of a trial with the node of its pack, of which it pays its part.

    Args:
        plan: Its own plan.
        pack: The pack.
    """
    node = pack.node
    return replace(
        plan,
        instance=node.instance,
        hardware=node.hardware,
        request=node.request,
        price_per_hour=node.price_per_hour / pack.slots,
        alternatives=[],
    )


def _base_gib(plan: TrainingPlan) -> float:
    return _HALF * plan.parameters / GIB


def _is_enough(offer: Offer, plans: Mapping[int, TrainingPlan]) -> bool:
    """Whether each device of a machine has the memory that the trials were planned with."""
    return all(offer.gpu_gib >= plan.memory.device_gib for plan in plans.values()) if offer.gpus else True


def _rank(packs: list[PlannedPack]) -> tuple[float, int, str]:
    return round(_price(packs), 6), len(packs), packs[0].node.instance


def _price(packs: Iterable[PlannedPack]) -> float:
    """What packs cost for an hour of each trial."""
    return sum(pack.node.price_per_hour * pack.waves for pack in packs)


def _node(offer: Offer, need: Need, plans: Mapping[int, TrainingPlan], slots: int) -> EvaluationNode:
    share = slots / offer.gpus if offer.gpus else 1.0
    first, memory = next(iter(plans.values())), math.ceil(slots * (need.memory_gib + need.shared_memory_gib))
    request = NodeRequest(
        cpus=max(1, math.floor(offer.cpus * share)),
        memory_gib=math.floor(min(offer.host_gib, max(offer.host_gib * share, memory))),
        shared_memory_gib=max(1, math.ceil(slots * need.shared_memory_gib)),
        disk_gib=math.ceil(need.models_gib + slots * need.disk_gib) + DISK_BESIDE_GIB,
        gpus=slots if offer.gpus else 0,
    )
    return EvaluationNode(
        offer.name, offer.device, slots, offer.gpu_gib, first.precision, request, offer.price_per_hour
    )

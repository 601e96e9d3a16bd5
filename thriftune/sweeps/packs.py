"""The trials that share a node."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from thriftune.training_plan import TrainingPlan


@dataclass(frozen=True)
class TrialJob:
    """One trial that is to train.

    Attributes:
        number: Number of the trial, from 0.
        config: The trial's run file, as JSON.
        plan: Its plan.
        cache_key: What the training is known by.
        record: URL of its record in the index; empty in a local run.
        model: Key of its base model among the pack's models.
        dataset: Key of its dataset among the pack's datasets.
    """

    number: int
    config: str
    plan: TrainingPlan
    cache_key: str
    record: str
    model: str
    dataset: str


@dataclass(frozen=True)
class TrialKey:
    """Where what a trial makes is found.

    Attributes:
        number: Number of the trial, from 0.
        cache_key: What the training is known by. Trials that write the same in two ways have the same.
        record: URL of its record in the index; empty in a local run.
    """

    number: int
    cache_key: str
    record: str


@dataclass(frozen=True)
class Pack:
    """Trials for one node.

    Attributes:
        number: Number of the pack, from 0.
        slots: Most trials at a time; the others wait for a free device.
        jobs: The trials.
    """

    number: int
    slots: int
    jobs: list[TrialJob]


def on_fewer_nodes(packs: Sequence[Pack], most: int) -> list[Pack]:
    """Packs of equal nodes, some of whose trials are trained, on as few of these nodes as hold the others.

    Args:
        packs: The packs, each with the trials that are left.
        most: Trials that one of them was planned for.
    """
    jobs = [job for pack in packs for job in pack.jobs]
    count = math.ceil(len(jobs) / most)
    ends = [round(len(jobs) * index / count) for index in range(count + 1)]
    return [replace(pack, jobs=jobs[ends[index] : ends[index + 1]]) for index, pack in enumerate(packs[:count])]

"""The planner: find the machines on which a run fits and is best by `plan.minimize`; or say why nothing fits."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from thriftune.config import RunConfig
from thriftune.errors import ConfigError, Problem, UserError
from thriftune.methods import METHODS
from thriftune.models import architecture as architectures
from thriftune.models.architecture import Architecture
from thriftune.models.positions import require_positions
from thriftune.planned_node import NodeRequest
from thriftune.planning import matching, offers
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.choices import Choice, Fitting, Refusal
from thriftune.planning.evaluating import planned_benchmarks, planned_evaluation
from thriftune.planning.ledger import Record
from thriftune.planning.merging import merging_gib
from thriftune.planning.objectives import require_countable, warn_of_budget
from thriftune.planning.offers import DISK_BESIDE_GIB, Offer
from thriftune.planning.search import search, ways_of
from thriftune.planning.suggestions import changes_that_fit
from thriftune.planning.time.run import Size, Times, full_rows
from thriftune.planning.verdict import advising, sentence
from thriftune.training_plan import Alternative, Estimate, SpotTime, TrainingPlan

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_ALTERNATIVES = 4
_REASONS = 5
# Least size of a pod's /dev/shm, in GiB: Kubernetes' default of 64 MiB is too little for any collective.
_LEAST_SHARED_MEMORY = 1


def plan(
    config: RunConfig,
    catalogue: Catalogue,
    *,
    architecture: Architecture | None = None,
    here: Offer | None = None,
    token: str | None = None,
    size: Size | None = None,
    records: Sequence[Record] = (),
    interruptible: bool = False,
) -> TrainingPlan:
    """Find the best plan that fits. What the run's file fixes is kept and checked, never overridden.

    The best plan is the one that `plan.minimize` names; on the same machines it has the fastest strategy and settings,
    with the largest micro batch. It fits even if it needs the most that it
    may need; where nothing does, the plan is one that may fit, with the smallest micro batch, and its verdict says so.

    Args:
        config: The run.
        catalogue: Node types to choose among.
        architecture: The model's architecture; read from its config.json when left out.
        here: This machine, for a run on it; the catalogue is then ignored.
        token: Hub token, to read the config.json of a model whose configuration is not shipped.
        size: The run's rows; rows of full length when left out.
        records: The ledger.
        interruptible: Whether tasks on GPUs run on spot nodes.

    Returns:
        The plan.

    Raises:
        ConfigError: Nothing fits, or the file contradicts itself or the catalogue; with all reasons, and the smallest
            changes that would fit.
        ModelSourceError: The architecture cannot be read.
    """
    method, found = METHODS[config.method], ErrorCollector()
    ways = found.take(lambda: ways_of(config)) or []
    model = found.take(lambda: architecture or architectures.of(config.model, token, config.labels))
    machines = found.take(lambda: _machines(config, catalogue, here, interruptible=interruptible)) or []
    if model is not None:
        found.take(lambda: require_positions(model, config.data.max_length))
    if model is not None:
        found.take(lambda: method.check(config, model))
    found.raise_all()
    assert model is not None
    trained = method.planned(config, model)[1]
    times = Times(config, trained, size or full_rows(config), tuple(records))
    require_countable(config, times.steps)
    fitting, refused = search(config, model, machines, ways, 1 + (_ALTERNATIVES if here is None else 0), times)
    if not fitting:
        is_room = any(refusal.has_room for refusal in refused)
        raise _nothing_fits(refused, None if is_room else changes_that_fit(config, model, catalogue, here))
    if not fitting[0].is_sure:
        fitting[0] = _advised(fitting[0], changes_that_fit(config, model, catalogue, here))
        logger.warning("It is uncertain whether the run fits: %s", sentence(fitting[0].verdict))
    if fitting[0].choice.price_per_hour:
        warn_of_budget(config, times.steps)
    evaluation = planned_evaluation(config, trained, catalogue, here)
    benchmarks = planned_benchmarks(config, trained, catalogue, here, interruptible=interruptible)
    made = _plan_of(config, model, catalogue, fitting)
    return replace(made, evaluation=evaluation, benchmarks=benchmarks)


class ErrorCollector:
    """Collects the errors of several steps, to raise them together."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def take(self, step: Callable[[], _Value]) -> _Value | None:
        """Run a step, and return its value; None where it raises a UserError, which is kept."""
        try:
            return step()
        except UserError as error:
            self._errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raise the collected errors: a single one as it is, several as one error with all their problems.

        Raises:
            UserError: At least one error was collected.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise ConfigError([problem for error in self._errors for problem in error.problems])


def _machines(config: RunConfig, catalogue: Catalogue, here: Offer | None, *, interruptible: bool) -> list[Offer]:
    if here is None:
        found = matching.matching(config, catalogue)
        return [offers.on_spot(offer) for offer in found] if interruptible else found
    offers.require_allowed_here(config, here, catalogue.devices)
    return [here]


def _advised(found: Fitting, changes: list[str]) -> Fitting:
    """A choice that may fit, with changes of the run that surely do."""
    verdict = advising(found.verdict, changes)
    return replace(found, memory=replace(found.memory, verdict=verdict))


def _nothing_fits(refused: list[Refusal], changes: list[str] | None) -> ConfigError:
    """The error that nothing fits: the closest attempt on each kind of machine, the nearest first.

    Where some have enough memory, and exceed the run's limits or would not end, these come first.

    Args:
        refused: Why what was tried does not fit.
        changes: Changes of the run that would fit; None where memory is not what is wrong.
    """
    closest: dict[str, Refusal] = {}
    for refusal in refused:
        if refusal.machines not in closest or _distance(refusal) < _distance(closest[refusal.machines]):
            closest[refusal.machines] = refusal
    ordered = sorted(closest.values(), key=_distance)
    problems = [Problem("hardware", r.machines, f"{_described(r)}.", "") for r in ordered[:_REASONS]]
    if len(ordered) > _REASONS:
        problems.append(
            Problem("hardware", "", f"{len(ordered) - _REASONS} more were tried and are further from fitting.", "")
        )
    if changes is None:  # changes that need less memory would not help
        message = "of what fits, nothing keeps to the run's limits and comes to an end."
        problems.append(Problem("plan", "", message, f"For {ordered[0].machines}: {ordered[0].remedy}"))
    else:
        remedy = " Or: ".join(changes) if changes else "none of those that were tried."
        problems.append(Problem("hardware", "", "nothing fits.", f"Nearest changes that do: {remedy}"))
    return ConfigError.of("plan-does-not-fit", problems)


def _distance(refusal: Refusal) -> tuple[bool, float]:
    return not refusal.has_room, refusal.excess


def _described(refusal: Refusal) -> str:
    choice = refusal.choice
    if choice is None:
        return refusal.reason
    how = f"{choice.settings_name or 'this ZeRO configuration'}, " if choice.settings else ""
    return f"with {how}micro_batch {choice.batch.micro_batch} {refusal.reason}"


def _plan_of(config: RunConfig, model: Architecture, catalogue: Catalogue, fitting: list[Fitting]) -> TrainingPlan:
    choice, memory = fitting[0].choice, fitting[0].memory
    is_rented = choice.offer.price_per_hour > 0
    return TrainingPlan(
        method=config.method,
        strategy=choice.strategy.name,
        settings=choice.settings,
        hardware=choice.offer.device,
        instance=choice.offer.name,
        nodes=choice.nodes,
        devices_per_node=choice.devices_per_node,
        precision=choice.precision,
        global_batch=choice.batch.global_batch,
        micro_batch=choice.batch.micro_batch,
        accumulation=choice.batch.accumulation,
        validation_batch=choice.validation_batch,
        memory=memory,
        device_limit_gib=choice.device_limit_gib,
        host_limit_gib=choice.host_limit_gib,
        request=_request(choice, memory),
        price_per_hour=choice.price_per_hour,
        currency=catalogue.currency,
        prices_as_of=f"{catalogue.as_of}, {catalogue.region}" if is_rented else "",
        parameters=METHODS[config.method].planned(config, model)[1].parameters,
        trained_parameters=METHODS[config.method].trained_parameters(config, model),
        merging_gib=merging_gib(config, model),
        alternatives=[_alternative(other) for other in fitting[1:]],
        time=fitting[0].time,
        is_spot=choice.offer.is_spot,
        spot=_sourced(fitting[0].spot, catalogue),
    )


def _sourced(spot: SpotTime | None, catalogue: Catalogue) -> SpotTime | None:
    """With where the rate of interruptions is from, if that is the catalogue's own one."""
    if spot is None or spot.interruptions_per_month != catalogue.interruptions_per_month:
        return spot
    return replace(spot, rate_from=catalogue.interruptions_source or spot.rate_from)


def _request(choice: Choice, memory: Estimate) -> NodeRequest:
    """All resources that a node leaves for pods, or the part of them that belongs to the GPUs that are used."""
    return NodeRequest(
        cpus=max(1, math.floor(choice.offer.cpus * choice.share)),
        memory_gib=math.floor(choice.host_limit_gib),
        shared_memory_gib=max(_LEAST_SHARED_MEMORY, math.ceil(memory.shared_memory_gib)),
        disk_gib=math.ceil(memory.disk_gib) + DISK_BESIDE_GIB,
        gpus=choice.devices_per_node if choice.offer.gpus else 0,
    )


def _alternative(fitting: Fitting) -> Alternative:
    choice = fitting.choice
    return Alternative(
        instance=choice.offer.name,
        nodes=choice.nodes,
        devices_per_node=choice.devices_per_node,
        strategy=choice.strategy.name,
        settings=choice.settings_name,
        micro_batch=choice.batch.micro_batch,
        device_gib=fitting.memory.device_gib,
        device_limit_gib=choice.device_limit_gib,
        price_per_hour=choice.price_per_hour,
        time=fitting.time,
        spot=fitting.spot,
    )

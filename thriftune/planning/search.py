"""Search node types, node counts, strategies, their settings and micro batches for what fits."""

import math
from collections.abc import Callable
from dataclasses import replace

from thriftune.batching import Batch
from thriftune.config import AUTO, RunConfig, Section
from thriftune.config.rules import NODE_COUNTS
from thriftune.errors import ConfigError
from thriftune.hardware import Precision, choose_precision
from thriftune.methods import METHODS
from thriftune.models import saving
from thriftune.models.architecture import Architecture
from thriftune.planning import on_spot
from thriftune.planning.choices import Choice, Fitting, Refusal, Way
from thriftune.planning.memory import estimate
from thriftune.planning.memory.estimate import VALIDATION
from thriftune.planning.memory.validating import batch_of, bytes_of
from thriftune.planning.objectives import fastest, in_order, within
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.planning.time.run import Times
from thriftune.planning.verdict import judge, largest
from thriftune.strategies import Machines, Strategy, candidates
from thriftune.strategies.memory.activations import StepShape
from thriftune.training_plan import Estimate, Verdict

# A larger micro batch than this makes no step faster on the GPUs of the catalogue, and takes more memory.
_LARGEST_MICRO_BATCH = 16


def search(
    config: RunConfig,
    architecture: Architecture,
    offers: list[Offer],
    ways: list[Way],
    wanted: int,
    times: Times | None = None,
) -> tuple[list[Fitting], list[Refusal]]:
    """The best ways to run that fit, one per kind and number of machines.

    Args:
        config: The run.
        architecture: Its model.
        offers: Kinds of machines to choose among.
        ways: Strategies with their settings, the fastest first.
        wanted: Number of choices to find.
        times: Plans their time; None to take the lowest price per hour.

    Returns:
        The choices that fit, best first, or where nothing fits for sure those that may; and why the others that
        were tried do not fit.
    """
    sure: list[Fitting] = []
    unsure: list[Fitting] = []
    refused: list[Refusal] = []
    tuned, trained = METHODS[config.method].planned(config, architecture)
    places = [(offer, nodes) for offer in offers for nodes in _node_counts(config, offer, ways)]
    minimize = config.plan.minimize if times is not None else "price_per_hour"
    limits = (config.plan.deadline_hours, config.plan.budget)
    # Of what is cheap per hour, none may keep to a limit, or ever finish on spot nodes.
    may_end = minimize == "price_per_hour" and not any(limits) and not any(offer.is_spot for offer in offers)
    # At an equal price fewer machines first: they have less to communicate.
    for offer, nodes in sorted(places, key=lambda p: (p[0].price_per_hour * p[1], p[1], p[0].name)):
        found, others = _fit(config, trained, tuned, offer, nodes, ways, times)
        refused += others
        if found is not None:
            (sure if found.is_sure else unsure).append(found)
        if len(sure) == wanted and may_end:
            break
    if times is not None:
        sure, reasons = _keeping_limits(config, architecture, sure)
        unsure, others = _keeping_limits(config, architecture, unsure)
        refused += reasons if sure else [*reasons, *others]
    return in_order(sure, minimize)[:wanted] or in_order(unsure, minimize)[:wanted], refused


def _keeping_limits(
    config: RunConfig, architecture: Architecture, found: list[Fitting]
) -> tuple[list[Fitting], list[Refusal]]:
    """Choices that finish, on spot nodes too, and keep to the deadline and the budget; and why the others do not."""
    finishing, endless = on_spot.finishing(config, architecture, found)
    kept, late = within(config, finishing)
    return kept, [*endless, *late]


def ways_of(config: RunConfig) -> list[Way]:
    """The strategies that a run may use, each with every setting it leaves to choose among, checked.

    Args:
        config: The run.

    Raises:
        ConfigError: Settings that the run names do not exist or are not valid.
    """
    ways = [
        Way(strategy, settings, name)
        for strategy in candidates(config)
        for name, settings in strategy.options(config).items()
    ]
    if problems := [problem for way in ways for problem in way.strategy.check(way.settings)]:
        raise ConfigError(problems)
    return ways


def _node_counts(config: RunConfig, offer: Offer, ways: list[Way]) -> tuple[int, ...]:
    if config.hardware.nodes is not None:
        return (config.hardware.nodes,)
    # Adapters use more nodes only if the run names them: gathering the base over a network is slow, which a price per
    # hour does not show.
    may_span = METHODS[config.method].facts.trains_weights and any(way.strategy.facts.may_span_nodes for way in ways)
    return NODE_COUNTS if may_span and not offer.is_own and offer.name != THIS_MACHINE else (1,)


def _fit(
    config: RunConfig,
    architecture: Architecture,
    tuned: Section | None,
    offer: Offer,
    nodes: int,
    ways: list[Way],
    times: Times | None,
) -> tuple[Fitting | None, list[Refusal]]:
    """The fastest way to run on these machines that fits, or else the one that fits most likely; and why others do not.

    What may fit is not made larger: of that, every way has its smallest micro batch.
    """
    if offer.host_gib <= 0:
        return None, [Refusal(f"{nodes} x {offer.name}", None, "the node leaves no host memory for a pod", math.inf)]
    refused: list[Refusal] = []
    sure: list[Fitting] = []
    unsure: list[Fitting] = []
    for way in ways:
        facts, devices = way.strategy.facts, _devices(config, offer, way.strategy)
        if (facts.most_devices or devices) < devices or (nodes > 1 and not facts.may_span_nodes):
            continue
        if facts.needs_others and nodes * devices == 1 and config.strategy == AUTO:
            continue
        outcome = _fit_way(config, architecture, tuned, offer, nodes, way, times)
        if isinstance(outcome, Refusal):
            refused.append(outcome)
            continue
        outcome = _timed(config, tuned, outcome, times)
        (sure if outcome.is_sure else unsure).append(outcome)
        if outcome.is_sure and outcome.time is None:  # the first one is taken for the fastest
            break
    least = min(unsure, key=lambda found: found.verdict.share, default=None)
    return fastest(sure) or least, list(dict.fromkeys(refused))


def _timed(config: RunConfig, tuned: Section | None, found: Fitting, times: Times | None) -> Fitting:
    """A choice that fits, with its time."""
    choice = found.choice
    if times is None:
        return found
    step_shape = step_shape_of(config, choice.batch.micro_batch, choice.precision)
    return replace(found, time=times.of(choice, replace(step_shape, tuned=tuned)))


def _fit_way(
    config: RunConfig,
    architecture: Architecture,
    tuned: Section | None,
    offer: Offer,
    nodes: int,
    way: Way,
    times: Times | None,
) -> Fitting | Refusal:
    """The largest micro batch that fits, or the smallest one where none does for sure."""
    training, devices = config.training, _devices(config, offer, way.strategy)
    precision = choose_precision(training.precision, offer.device)
    ranks = nodes * way.strategy.processes(devices)
    micro_batches = _micro_batches(config, ranks)
    if not micro_batches:
        per_pass = ranks * (training.micro_batch or 1)
        reason = f"training.global_batch {training.global_batch} is not a multiple of {per_pass}"
        return Refusal(f"{nodes} x {offer.name}", None, reason, math.inf)

    def attempt(micro: int) -> Fitting | Refusal:
        batch = Batch(training.global_batch, micro, training.global_batch // (micro * ranks), ranks)
        step_shape = replace(step_shape_of(config, micro, precision), tuned=tuned)
        choice = Choice(offer, nodes, devices, way.strategy, way.settings, way.settings_name, batch, precision)
        return _try(config, architecture, choice, step_shape, times)

    return _largest_that_fits(micro_batches, attempt)


def _largest_that_fits(micro_batches: list[int], attempt: Callable[[int], Fitting | Refusal]) -> Fitting | Refusal:
    """The outcome with the largest micro batch that fits for sure, or with the smallest one where none does.

    A larger one never needs less, so few have to be tried.
    """
    best = attempt(micro_batches[0])
    if isinstance(best, Refusal) or not best.is_sure:
        return best
    fits, too_many = 0, len(micro_batches)
    tried = too_many - 1  # in most places where one row fits, many do
    while too_many - fits > 1:
        outcome = attempt(micro_batches[tried])
        if isinstance(outcome, Fitting) and outcome.is_sure:
            best, fits = outcome, tried
        else:
            too_many = tried
        tried = (fits + too_many) // 2
    return best


def _devices(config: RunConfig, offer: Offer, strategy: Strategy) -> int:
    """Devices of a node that a run uses: what it asks for; else all, or as many as the strategy it names can use."""
    asked = config.hardware.devices_per_node
    most = strategy.facts.most_devices if config.strategy != AUTO else None
    return asked or min(offer.gpus or 1, most or offer.gpus or 1)


def _micro_batches(config: RunConfig, ranks: int) -> list[int]:
    """Micro batches that divide each rank's share of the global batch, the smallest first; none where ranks do not."""
    rows, remainder = divmod(config.training.global_batch, ranks)
    fixed = config.training.micro_batch
    possible = (fixed,) if fixed else range(1, min(rows, _LARGEST_MICRO_BATCH) + 1)
    return [] if remainder else [micro for micro in possible if rows % micro == 0]


def step_shape_of(config: RunConfig, micro_batch: int, precision: Precision) -> StepShape:
    """The largest forward and backward pass that each device of a run computes.

    Args:
        config: The run.
        micro_batch: Rows at a time.
        precision: Precision of the matrix products.
    """
    return StepShape(
        micro_batch=micro_batch,
        sequence=config.data.max_length,
        gradient_checkpointing=config.training.gradient_checkpointing,
        precision=precision,
        tuned=METHODS[config.method].section(config),
        four_bit=METHODS[config.method].four_bit(config),
    )


def _try(
    config: RunConfig, architecture: Architecture, choice: Choice, step_shape: StepShape, times: Times | None
) -> Fitting | Refusal:
    machines = Machines(choice.offer.device, choice.offer.gpu_gib, choice.nodes, choice.devices_per_node)
    optimizer = config.training.optimizer
    needs = choice.strategy.memory(architecture, step_shape, machines, choice.settings, optimizer)
    if needs is None:
        reason = (
            f"the weights cannot be split by layers over {choice.devices_per_node} x {choice.offer.gpu_gib:.1f} GiB"
        )
        return Refusal(choice.machines, choice, reason, math.inf)
    rows = batch_of(config, architecture, step_shape, needs.devices)
    needed = estimate(
        choice.strategy,
        architecture,
        step_shape,
        machines,
        settings=choice.settings,
        optimizer=optimizer,
        validation_bytes=bytes_of(config, architecture, step_shape, rows),
        converts=config.checkpoints.resume_from is not None,
        saved_bytes=saving.bytes_at_most(config),
        needs=needs,
    )
    assert needed is not None
    verdict = judge(
        needed,
        choice.device_limit_gib,
        choice.host_limit_gib,
        choice.offer.disk_gib or math.inf,
        micro_batch=choice.batch.micro_batch,
        evidence=times.evidence(choice) if times is not None else None,
    )
    if verdict.answer == "does not fit":
        return Refusal(choice.machines, choice, _reason(needed, verdict), verdict.share)
    return Fitting(replace(choice, validation_batch=rows), replace(needed, verdict=verdict))


def _reason(needed: Estimate, verdict: Verdict) -> str:
    is_device = verdict.where.startswith("each")
    items = {"the host": needed.host, "the local disk": needed.disk}.get(verdict.where, needed.device)
    when = " during validation" if is_device and needed.phase == VALIDATION else ""
    amount = f"{verdict.low_gib:.1f} to {verdict.high_gib:.1f} GiB of {verdict.limit_gib:.1f}{when}"
    said = f"; {verdict.leans_on}" if verdict.leans_on else ""
    return f"{verdict.where} needs {amount} ({largest(items)}{said})"

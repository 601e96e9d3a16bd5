"""Suggest changes to a run that fits nowhere: each change is tried, and only those that fit are named."""

from collections.abc import Callable, Iterator
from typing import Any

from thriftune.config import AUTO, EvaluationConfig, RunConfig
from thriftune.config.choices import STRATEGIES as STRATEGY_FACTS
from thriftune.errors import ConfigError, UserError
from thriftune.methods import METHODS
from thriftune.models.architecture import Architecture
from thriftune.planning import matching
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.offers import Offer
from thriftune.planning.search import search, ways_of
from thriftune.strategies import candidates

_SHORTEST_SEQUENCE = 128
_ENOUGH = 3

Change = tuple[str, RunConfig]
"""A change of a run, as text, and the run with it."""


def changes_that_fit(
    config: RunConfig,
    model: Architecture,
    catalogue: Catalogue,
    here: Offer | None,
) -> list[str]:
    """The smallest changes with which a run fits, as sentences.

    Args:
        config: The run, which fits nowhere as it is.
        model: Its model.
        catalogue: Node types to choose among.
        here: This machine, for a run on it; None for a run on a cluster.

    Returns:
        At most three, the least intrusive first.
    """

    def attempt(change: Change) -> str | None:
        what, changed = change
        try:
            machines = [here] if here is not None else matching.matching(changed, catalogue)
            METHODS[changed.method].check(changed, model)
            fitting, _ = search(changed, model, machines, ways_of(changed), 1)
        except UserError:
            return None
        if not (fitting and fitting[0].is_sure):
            return None
        choice = fitting[0].choice
        price = f", {choice.price_per_hour:.2f} {catalogue.currency}/h" if choice.price_per_hour else ""
        return f"{what} ({choice.machines}{price})."

    found: dict[str, str] = {}
    for kind, changes in _changes(config, is_given=here is not None or _names_own(config, catalogue)):
        if kind not in found and (first := _first_that_fits(changes, attempt)) is not None:
            found[kind] = first
        if len(found) == _ENOUGH:
            break
    return list(found.values())


def _first_that_fits(changes: list[Change], attempt: Callable[[Change], str | None]) -> str | None:
    """The sentence of the first change that fits, of several each of which needs less than the one before."""
    if not changes or (found := attempt(changes[-1])) is None:
        return None
    too_large, fits = -1, len(changes) - 1
    while fits - too_large > 1:
        middle = (fits + too_large) // 2
        if (sentence := attempt(changes[middle])) is None:
            too_large = middle
        else:
            found, fits = sentence, middle
    return found


def _names_own(config: RunConfig, catalogue: Catalogue) -> bool:
    """Whether a run names a machine of one's own: who has that one has no other."""
    return config.hardware.instance is not None and catalogue.get(config.hardware.instance).own


def _changes(config: RunConfig, *, is_given: bool) -> Iterator[tuple[str, list[Change]]]:
    """Changes of a run by kind, the least intrusive first; of several, each needs less memory than the one before."""
    hardware, training = config.hardware, config.training
    for rows in _near_batches(training.global_batch):
        yield "batch", [(f"training.global_batch: {rows}", _with(config, "training", global_batch=rows))]
    if training.micro_batch not in (None, 1):
        yield "micro", [("leave training.micro_batch out", _with(config, "training", micro_batch=None))]
    if not training.gradient_checkpointing:
        changed = _with(config, "training", gradient_checkpointing=True)
        yield "checkpointing", [("training.gradient_checkpointing: true", changed)]
    usual = EvaluationConfig().max_new_tokens
    if config.evaluation.max_new_tokens > usual:
        changed = _with(config, "evaluation", max_new_tokens=usual)
        yield "answers", [(f"evaluation.max_new_tokens: {usual}", changed)]
    if config.zero_or_default.config != AUTO:
        yield "zero", [("zero.config: auto", _with(config, "zero", config=AUTO))]
    if config.strategy != AUTO:
        yield "strategy", [("strategy: auto", config.model_copy(update={"strategy": AUTO}))]
    if not is_given and hardware.nodes is not None and any(s.facts.may_span_nodes for s in candidates(config)):
        yield "nodes", [("leave hardware.nodes out", _with(config, "hardware", nodes=None))]
    if not is_given and (hardware.instance or hardware.devices_per_node):
        free = _with(config, "hardware", instance=None, devices_per_node=None, nodes=None)
        yield "place", [("leave hardware.instance, devices_per_node and nodes out", free)]
    lengths = [config.data.max_length >> halvings for halvings in range(1, config.data.max_length.bit_length())]
    yield (
        "length",
        [
            (f"data.max_length: {length}", _with(config, "data", max_length=length))
            for length in lengths
            if length >= _SHORTEST_SEQUENCE
        ],
    )
    yield from _lighter_method(config, is_given=is_given)
    if not is_given and hardware.device is not None:
        free = _with(config, "hardware", device=None, instance=None, devices_per_node=None, nodes=None)
        yield "hardware", [("leave the whole hardware section out", free)]


def _near_batches(rows: int) -> list[int]:
    """Global batches near one that cannot be divided, the nearest first: multiples of 8, which suit most nodes."""
    below, above = rows // 8 * 8, -(-rows // 8) * 8
    return sorted({batch for batch in (below, above) if batch and batch != rows}, key=lambda batch: abs(batch - rows))


def _lighter_method(config: RunConfig, *, is_given: bool) -> Iterator[tuple[str, list[Change]]]:
    lighter = METHODS[config.method].facts.lighter
    if lighter is None:
        return
    content = config.model_dump()
    content |= dict.fromkeys(facts.section for facts in STRATEGY_FACTS.values() if facts.section)
    own = METHODS[config.method].facts.section
    if own and own != METHODS[lighter].facts.section:
        content[own] = None
    hardware = content["hardware"] | {"nodes": None} | ({"devices_per_node": None} if is_given else {})
    try:
        changed = RunConfig.model_validate(content | {"method": lighter, "strategy": AUTO, "hardware": hardware})
    except ConfigError:  # something else in the file does not allow it
        return
    yield "method", [(f"method: {lighter}", changed)]


def _with(run: RunConfig, section: str, /, **values: Any) -> RunConfig:
    old = getattr(run, f"{section}_or_default", getattr(run, section))
    return run.model_copy(update={section: old.model_copy(update=values)})

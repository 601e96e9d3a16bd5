"""What to change in a run that fits nowhere: each change is tried, and only those that fit are named."""

from collections.abc import Iterator, Mapping
from typing import Any

from thriftune import offers
from thriftune.architecture import Architecture
from thriftune.catalogue import Catalogue
from thriftune.config import AUTO, RunConfig
from thriftune.errors import ConfigError
from thriftune.offers import Offer
from thriftune.search import search, zero_choices

_SHORTEST_SEQUENCE = 128
_ENOUGH = 3


def changes_that_fit(
    config: RunConfig,
    model: Architecture,
    catalogue: Catalogue,
    zero_files: Mapping[str, dict[str, Any]],
    here: Offer | None,
) -> list[str]:
    """The nearest changes with which a run fits, as sentences.

    Args:
        config: The run, which fits nowhere as it is.
        model: Its model.
        catalogue: Node types to choose among.
        zero_files: DeepSpeed configurations by name.
        here: This machine, for a run on it.

    Returns:
        Three at the most, the least intrusive first.
    """
    found: list[str] = []
    for what, changed in _changes(config, is_here=here is not None):
        options = zero_choices(changed.zero_or_default.config, zero_files) if changed.method == "full" else {}
        try:
            machines = [here] if here is not None else offers.matching(changed, catalogue)
        except ConfigError:
            continue
        fitting, _ = search(changed, model, machines, options, 1)
        if fitting:
            choice = fitting[0].choice
            price = f", {choice.price_per_hour:.2f} {catalogue.currency}/h" if here is None else ""
            found.append(f"{what} ({choice.place}{price}).")
        if len(found) == _ENOUGH:
            break
    return found


def _changes(config: RunConfig, *, is_here: bool) -> Iterator[tuple[str, RunConfig]]:
    """Changed copies of a run, the least intrusive first."""
    hardware, training = config.hardware, config.training
    if training.micro_batch not in (None, 1):
        yield "leave training.micro_batch out", _with(config, "training", micro_batch=None)
    if not training.gradient_checkpointing:
        yield "training.gradient_checkpointing: true", _with(config, "training", gradient_checkpointing=True)
    if config.method == "full" and config.zero_or_default.config != AUTO:
        yield "zero.config: auto", _with(config, "zero", config=AUTO)
    if config.method == "full" and not is_here and hardware.nodes is not None:
        yield "leave hardware.nodes out", _with(config, "hardware", nodes=None)
    if not is_here and (hardware.instance or hardware.devices_per_node):
        free = _with(config, "hardware", instance=None, devices_per_node=None, nodes=None)
        yield "leave hardware.instance, devices_per_node and nodes out", free
    length = config.data.max_length // 2
    while length >= _SHORTEST_SEQUENCE:
        yield f"data.max_length: {length}", _with(config, "data", max_length=length)
        length //= 2
    if config.method == "full":
        content = config.model_dump()
        adapted = content | {"method": "qlora", "zero": None, "hardware": content["hardware"] | {"nodes": None}}
        yield "method: qlora", RunConfig.model_construct(**dict(RunConfig.model_validate(adapted)))
    if not is_here and hardware.device is not None:
        free = _with(config, "hardware", device=None, instance=None, devices_per_node=None, nodes=None)
        yield "leave the whole hardware section out", free


def _with(run: RunConfig, section: str, /, **values: Any) -> RunConfig:
    old = getattr(run, section) or run.zero_or_default
    return run.model_copy(update={section: old.model_copy(update=values)})

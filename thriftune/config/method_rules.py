"""Rules over several fields of the sections about methods."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from thriftune.config.choices import METHODS, STRATEGIES, strategies_of
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

# First values that take a part of each weight out of the base model; the difference that training made is saved.
TAKING = ("pissa", "olora")


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the method's section that the file alone shows."""
    for rule in _RULES.get(METHODS[config.method].section, ()):
        yield from rule(config)


def _partial(config: "RunConfig") -> Iterator[Problem]:
    partial = config.partial_or_default
    if not partial.train and not partial.add_layers:
        yield Problem(
            "partial.train",
            "",
            "names nothing, so nothing would train.",
            "Name what trains, such as [last_layers: 2, head], or set partial.add_layers.",
        )


def _first_values(config: "RunConfig") -> Iterator[Problem]:
    """First values of adapters that cannot be computed, or that could not be saved as a plain adapter."""
    lora = config.lora_or_default
    if lora.init == "default":
        return
    reasons = [facts.refuses_init.get(lora.init) for facts in map(STRATEGIES.__getitem__, strategies_of(config))]
    if all(reasons):
        able = ", ".join(name for name, facts in STRATEGIES.items() if lora.init not in facts.refuses_init)
        message = f"cannot be computed with strategy {config.strategy}: {reasons[0]}."
        yield _init(config, message, f"Use strategy {able}, or leave lora.init out.")
    if lora.resume_from is not None:
        yield _init(config, "an adapter to continue has its values already.", "Leave lora.init out.")
    if lora.init not in TAKING:
        return
    if METHODS[config.method].quantizes:
        message = (
            "would change the base model's weights, which in 4 bits rounds them again: what is saved would differ."
        )
        yield _init(config, message, "Use method: lora; or init: eva or orthogonal, which leave the base as it is.")
    if lora.variant == "dora":
        message = "would change the weights whose magnitudes variant dora has measured."
        yield _init(config, message, "Use variant: lora, or leave lora.init out.")
    if lora.variant == "rslora" and lora.rank_patterns:
        message = "cannot be saved with variant rslora and lora.rank_patterns: peft cannot double such ranks."
        yield _init(config, message, "Leave out one of the three.")
    if lora.bias != "none" or lora.modules_to_save:
        message = "is saved as a difference from the first adapter, in which peft has no biases and no whole modules."
        yield _init(config, message, "Leave lora.bias and lora.modules_to_save out, or lora.init.")


def _init(config: "RunConfig", message: str, remedy: str) -> Problem:
    return Problem("lora.init", config.lora_or_default.init, message, remedy)


def _ranks(config: "RunConfig") -> Iterator[Problem]:
    """Patterns that are none, and ranks that orthogonal matrices cannot have."""
    lora = config.lora_or_default
    patterns = [each.pattern for each in lora.rank_patterns]
    for twice in sorted({pattern for pattern in patterns if patterns.count(pattern) > 1}):
        yield Problem("lora.rank_patterns", twice, "is there twice, and only one of the two counts.", "Remove one.")
    for each in lora.rank_patterns:
        try:
            re.compile(each.pattern)
        except re.error as error:
            message = f"is not a regular expression ({error})."
            yield Problem(
                "lora.rank_patterns", each.pattern, message, "Write the end of a module's name, such as v_proj."
            )
    if lora.init == "orthogonal":
        for odd in sorted({rank for rank in (lora.rank, *(each.rank for each in lora.rank_patterns)) if rank % 2}):
            yield Problem(
                "lora.rank", str(odd), "is odd, and lora.init: orthogonal needs even ranks.", f"Use {odd + 1}."
            )


def _whole_modules(config: "RunConfig") -> Iterator[Problem]:
    """Modules that would get an adapter and train as a whole too."""
    lora = config.lora_or_default
    for name in sorted(set(lora.modules_to_save) & set(lora.target_modules or ())):
        message = "would get an adapter, too: it is in lora.target_modules."
        yield Problem("lora.modules_to_save", name, message, "Name it in one of the two.")


def _in_four_bits(config: "RunConfig") -> Iterator[Problem]:
    if not METHODS[config.method].quantizes:
        return
    variant = config.lora_or_default.variant
    reasons = [STRATEGIES[name].refuses_in_four_bits.get(variant) for name in strategies_of(config)]
    if all(reasons):
        able = [name for name, facts in STRATEGIES.items() if variant not in facts.refuses_in_four_bits]
        message = f"cannot be trained with method {config.method} and strategy {config.strategy}: {reasons[0]}."
        yield Problem("lora.variant", variant, message, f"Use strategy {', '.join(able)}, or method lora.")


def _packed_prefix(config: "RunConfig") -> Iterator[Problem]:
    if config.data.packing:
        yield Problem(
            "data.packing",
            "true",
            "transformers tells packed examples apart only without a cache, which is where a prefix is.",
            "Use data.packing: false, with training.group_by_length: true.",
        )


# The rules of each section.
_RULES: dict[str, tuple[Callable[["RunConfig"], Iterator[Problem]], ...]] = {
    "partial": (_partial,),
    "lora": (_first_values, _ranks, _whole_modules, _in_four_bits),
    "prefix": (_packed_prefix,),
}

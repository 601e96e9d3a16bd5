"""The available methods and strategies, and the facts that rules need about each before a model is looked at.

Their code is in `thriftune.methods` and `thriftune.strategies`, with a module and a table entry for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

Method = Literal["full", "lora", "qlora"]
StrategyName = Literal["zero", "layers", "single"]
StrategyChoice = Literal["auto", StrategyName]
AUTO: Final = "auto"


@dataclass(frozen=True)
class MethodFacts:
    """A method: which weights are trained.

    Attributes:
        title: Its usual name.
        workflow: The workflow named after it; `finetune` runs every method.
        section: Its section of the run file; empty if it has none.
        trains_weights: Whether it trains the model's own weights, so that the result is a model; else an adapter.
        quantizes: Whether it holds the frozen base model in 4 bits.
        lighter: A method for the same purpose that needs less memory; None if there is none.
    """

    title: str
    workflow: str
    section: str = ""
    trains_weights: bool = False
    quantizes: bool = False
    lighter: Method | None = None

    @property
    def result(self) -> Literal["model", "adapter"]:
        """What a training produces."""
        return "model" if self.trains_weights else "adapter"


@dataclass(frozen=True)
class StrategyFacts:
    """A strategy: how weights are placed on devices.

    Attributes:
        title: Its usual name.
        section: Its section of the run file; empty if it has none.
        is_distributed: Whether each device has its own process, which trains on its own rows.
        may_span_nodes: Whether it can run on several machines.
        most_devices: Most devices of a machine that it uses; None means all.
        own_optimizer: Why `training.optimizer` must stay adamw; empty if any optimizer works.
        refuses: Methods that it cannot train, each with the reason as a clause.
    """

    title: str
    section: str = ""
    is_distributed: bool = False
    may_span_nodes: bool = False
    most_devices: int | None = None
    own_optimizer: str = ""
    refuses: Mapping[Method, str] = field(default_factory=dict)


METHODS: dict[Method, MethodFacts] = {
    "full": MethodFacts("full fine-tuning", "full_finetune", trains_weights=True, lighter="qlora"),
    "lora": MethodFacts("LoRA", "qlora_finetune", section="lora", lighter="qlora"),
    "qlora": MethodFacts("QLoRA", "qlora_finetune", section="lora", quantizes=True),
}

_ADAPTERS_UNDER_ZERO = "adapters are not trained under ZeRO yet; the base model is frozen and has no states to divide"
STRATEGIES: dict[StrategyName, StrategyFacts] = {
    "zero": StrategyFacts(
        "DeepSpeed ZeRO",
        section="zero",
        is_distributed=True,
        may_span_nodes=True,
        own_optimizer="ZeRO partitions AdamW's states itself",
        refuses={"lora": _ADAPTERS_UNDER_ZERO, "qlora": _ADAPTERS_UNDER_ZERO},
    ),
    "single": StrategyFacts("one device", most_devices=1),
    "layers": StrategyFacts(
        "split by layers",
        refuses={"full": "one process would hold the optimizer states of all weights; ZeRO divides them"},
    ),
}
"""In the order in which `auto` tries them for a method."""


def strategies_of(config: "RunConfig") -> tuple[StrategyName, ...]:
    """The strategies that a run may use: the one it names, or all that can train its method, in the order of `auto`.

    A section of the file that is for one of these names it too: what it says would be overlooked by the others.

    Args:
        config: The run.
    """
    if config.strategy != AUTO:
        return (config.strategy,)
    able = tuple(name for name, facts in STRATEGIES.items() if config.method not in facts.refuses)
    given = {facts.section for facts in STRATEGIES.values() if facts.section and getattr(config, facts.section)}
    return tuple(name for name in able if STRATEGIES[name].section in given) or able

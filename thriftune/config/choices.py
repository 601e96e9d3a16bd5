"""The methods and the strategies there are, and what rules must know of each before a model is looked at.

What they do is in `thriftune.methods` and `thriftune.strategies`, which have a module and a row for each.
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
    """A method: what trains.

    Attributes:
        title: What people call it.
        workflow: The workflow named for it, besides `finetune`, which runs every method.
        section: The section of a run file that is for it; empty where it has none.
        trains_weights: Whether the model's own weights change, and a model comes out; else adapters do.
        quantizes: Whether it holds the frozen base model in 4 bits.
        lighter: A method that needs less memory for the same purpose; None where there is none.
    """

    title: str
    workflow: str
    section: str = ""
    trains_weights: bool = False
    quantizes: bool = False
    lighter: Method | None = None

    @property
    def result(self) -> Literal["model", "adapter"]:
        """What comes out of a training."""
        return "model" if self.trains_weights else "adapter"


@dataclass(frozen=True)
class StrategyFacts:
    """A strategy: where weights lie.

    Attributes:
        title: What people call it.
        section: The section of a run file that is for it; empty where it has none.
        is_distributed: Whether each device has a process of its own, which trains on other rows.
        may_span_nodes: Whether it runs on several machines.
        most_devices: Devices of a machine that it uses at the most; None: all of them.
        own_optimizer: Why `training.optimizer` must stay adamw; empty where it need not.
        refuses: Methods that it cannot train, and why, as a clause.
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

_ADAPTERS_UNDER_ZERO = "adapters are not trained under ZeRO yet; the base model is frozen, and has no states to divide"
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
    """The strategies that a run may use: the one it names, or those that can train its method, as `auto` tries them.

    A section of the file that is for one of these names it too: what it says would be overlooked by the others.

    Args:
        config: The run.
    """
    if config.strategy != AUTO:
        return (config.strategy,)
    able = tuple(name for name, facts in STRATEGIES.items() if config.method not in facts.refuses)
    given = {facts.section for facts in STRATEGIES.values() if facts.section and getattr(config, facts.section)}
    return tuple(name for name in able if STRATEGIES[name].section in given) or able

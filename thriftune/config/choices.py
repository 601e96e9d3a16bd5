"""The available methods and strategies, and the facts that rules need about each before a model is looked at.

Their code is in `thriftune.methods` and `thriftune.strategies`, with a module and a table entry for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

Method = Literal["full", "partial", "lora", "qlora", "prefix", "llama_adapter"]
StrategyName = Literal["zero", "fsdp", "ddp", "single", "layers"]
StrategyChoice = Literal["auto", StrategyName]
Task = Literal["causal_lm", "classification"]
AUTO: Final = "auto"
ADAMW: Final = "adamw"
ANY_METHOD = "finetune"  # the workflow that runs every method


@dataclass(frozen=True)
class MethodFacts:
    """A method: which weights are trained.

    Attributes:
        title: Its usual name.
        workflow: The workflow named after it; `finetune` runs every method.
        section: Its section of the run file; empty if it has none.
        trains_weights: Whether it trains the model's own weights, so that the result is a model; else an adapter.
        quantizes: Whether it holds the frozen base model in 4 bits.
        merges: Whether what it trains can be added to the weights of the base model.
        classifies: Whether it can train a classifier.
        lighter: A method for the same purpose that needs less memory; None if there is none.
    """

    title: str
    workflow: str
    section: str = ""
    trains_weights: bool = False
    quantizes: bool = False
    merges: bool = False
    classifies: bool = False
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
        needs_others: Whether it is of use on several devices only, so that `auto` does not try it on one.
        may_span_nodes: Whether it can run on several machines.
        most_devices: Most devices of a machine that it uses; None means all.
        own_optimizer: Why `training.optimizer` must stay adamw; empty if any optimizer works.
        refuses: Methods that it cannot train, each with the reason as a clause.
        refuses_init: First values of adapters (`lora.init`) that it cannot compute, each with the reason as a clause.
        refuses_in_four_bits: Variants of LoRA (`lora.variant`) that it cannot train on a base in 4 bits, likewise.
    """

    title: str
    section: str = ""
    is_distributed: bool = False
    needs_others: bool = False
    may_span_nodes: bool = False
    most_devices: int | None = None
    own_optimizer: str = ""
    refuses: Mapping[Method, str] = field(default_factory=dict)
    refuses_init: Mapping[str, str] = field(default_factory=dict)
    refuses_in_four_bits: Mapping[str, str] = field(default_factory=dict)


METHODS: dict[Method, MethodFacts] = {
    "full": MethodFacts("full fine-tuning", "full_finetune", trains_weights=True, classifies=True, lighter="qlora"),
    "partial": MethodFacts(
        "partial fine-tuning",
        "full_finetune",
        section="partial",
        trains_weights=True,
        classifies=True,
        lighter="qlora",
    ),
    "lora": MethodFacts("LoRA", "qlora_finetune", section="lora", merges=True, classifies=True, lighter="qlora"),
    "qlora": MethodFacts("QLoRA", "qlora_finetune", section="lora", quantizes=True, merges=True, classifies=True),
    "prefix": MethodFacts("prefix tuning", ANY_METHOD, section="prefix", lighter="qlora"),
    "llama_adapter": MethodFacts("LLaMA-Adapter", ANY_METHOD, section="llama_adapter", lighter="qlora"),
}

_NOT_DIVIDED = "what it trains is so little that ddp, with the base model whole on each device, does it as well"
_NO_DORA = {"dora": "peft puts another weight in place of the divided one when it reads its magnitudes"}
_NOT_OVER_LAYERS = "what it adds to each layer is not placed on the device of that layer"
_IN_PARTS = "no process has the whole of a weight, from which they are computed"
_NO_INIT = dict.fromkeys(("pissa", "olora", "eva", "orthogonal"), _IN_PARTS)
STRATEGIES: dict[StrategyName, StrategyFacts] = {
    "zero": StrategyFacts(
        "DeepSpeed ZeRO",
        section="zero",
        is_distributed=True,
        may_span_nodes=True,
        own_optimizer="ZeRO partitions AdamW's states itself",
        refuses={"prefix": _NOT_DIVIDED, "llama_adapter": _NOT_DIVIDED},
        refuses_init=_NO_INIT,
        refuses_in_four_bits=_NO_DORA,
    ),
    "fsdp": StrategyFacts(
        "FSDP",
        section="fsdp",
        is_distributed=True,
        needs_others=True,
        may_span_nodes=True,
        own_optimizer="8-bit optimizers cannot step the shards of FSDP",
        refuses={"prefix": _NOT_DIVIDED, "llama_adapter": _NOT_DIVIDED},
        refuses_init=_NO_INIT,
        refuses_in_four_bits=_NO_DORA,
    ),
    "ddp": StrategyFacts("data parallel", is_distributed=True, needs_others=True, may_span_nodes=True),
    "single": StrategyFacts("one device", most_devices=1),
    "layers": StrategyFacts(
        "split by layers",
        refuses={
            "full": "one process would hold the optimizer states of all weights; ZeRO divides them",
            "partial": "the trained weights would lie on one of the devices, with all of their states",
            "prefix": _NOT_OVER_LAYERS,
            "llama_adapter": _NOT_OVER_LAYERS,
        },
        refuses_init={"eva": "peft compares the inputs of all layers on one device"},
    ),
}

# The order in which `auto` tries strategies. Where weights train, dividing their optimizer states costs no traffic;
# where adapters train there is little to divide, and copies of the base compute without gathering it.
_ORDER: dict[Literal["model", "adapter"], tuple[StrategyName, ...]] = {
    "model": ("zero", "fsdp", "ddp", "single", "layers"),
    "adapter": ("ddp", "single", "zero", "fsdp", "layers"),
}


def strategies_of(config: "RunConfig") -> tuple[StrategyName, ...]:
    """The strategies that a run may use: the one it names, or all that can train its method, in the order of `auto`.

    A section of the file that is for one of these names it too: what it says would be overlooked by the others. And of
    those that are left, `auto` tries only those for the machines and the optimizer that the file names.

    Args:
        config: The run.
    """
    if config.strategy != AUTO:
        return (config.strategy,)
    able = [name for name in _ORDER[METHODS[config.method].result] if config.method not in STRATEGIES[name].refuses]
    able = [name for name in able if config.lora_or_default.init not in STRATEGIES[name].refuses_init]
    if METHODS[config.method].quantizes:
        able = [n for n in able if config.lora_or_default.variant not in STRATEGIES[n].refuses_in_four_bits]
    given = {facts.section for facts in STRATEGIES.values() if facts.section and getattr(config, facts.section)}
    named = [name for name in able if STRATEGIES[name].section in given] or able
    return tuple(name for name in named if _suits(STRATEGIES[name], config)) or tuple(named)


def _suits(facts: StrategyFacts, config: "RunConfig") -> bool:
    """Whether a strategy can use the machines and the optimizer that a run names."""
    nodes, devices = config.hardware.nodes or 1, config.hardware.devices_per_node or 1
    if (nodes > 1 and not facts.may_span_nodes) or devices > (facts.most_devices or devices):
        return False
    if devices > 1 and config.hardware.device == "CPU" and not facts.is_distributed:
        return False
    return config.training.optimizer == ADAMW or not facts.own_optimizer

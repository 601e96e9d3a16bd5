"""The pairs of a method and a strategy, and the run file of each."""

from dataclasses import dataclass
from typing import Any

from thriftune.methods import METHODS
from thriftune.strategies import STRATEGIES

STEPS = 8
INTERVAL = 2
# What each method trains of the tiny model. Without dropout, whose random numbers differ between ranks.
SECTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "partial": {"partial": {"train": [{"last_layers": 1}, "norms"]}},
    "lora": {"lora": {"rank": 4, "dropout": 0.0}},
    "qlora": {"lora": {"rank": 4, "dropout": 0.0}},
    "prefix": {"prefix": {"virtual_tokens": 4}},
    "llama_adapter": {"llama_adapter": {"tokens": 4}},
}
# What is few and starts at random, or behind a gate that is closed, learns at higher rates.
RATES = {"prefix": 0.1, "llama_adapter": 0.3}
# ZeRO's files; where adapters train, only stage 3 divides anything.
ZERO_FILES = {"model": ("zero1", "zero2", "zero3"), "adapter": ("zero3",)}


@dataclass(frozen=True)
class Pair:
    """A method under a strategy.

    Attributes:
        method: The method.
        strategy: The strategy.
        zero: A file of deepspeed_configs; empty for other strategies.
    """

    method: str
    strategy: str
    zero: str = ""

    @property
    def name(self) -> str:
        """The strategy, by the name of the file where it has several."""
        return self.zero or self.strategy

    @property
    def is_distributed(self) -> bool:
        """Whether several ranks can train it."""
        return STRATEGIES[self.strategy].facts.is_distributed

    def config(self, ranks: int) -> dict[str, Any]:
        """The run file, for so many ranks."""
        trains_weights = METHODS[self.method].facts.trains_weights
        training = {
            "global_batch": 8, "micro_batch": 2, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
            "learning_rate": RATES.get(self.method, 2e-3), "save_dtype": "fp32" if trains_weights else "auto",
            "gradient_checkpointing": False,
        }  # fmt: skip
        return {
            "name": "pairs",
            "method": self.method,
            "strategy": self.strategy,
            "model": {"source": "tiny"},
            "data": {"source": "rows", "format": "chat"},
            "hardware": {"device": "CPU", "devices_per_node": ranks},
            "training": training,
            "checkpoints": {"every_steps": INTERVAL},
            "evaluation": {"max_new_tokens": 4},
            **SECTIONS[self.method],
            **({"zero": {"config": self.zero}} if self.zero else {}),
        }

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"


def _named(method: str, strategy: str) -> list[Pair]:
    if strategy != "zero":
        return [Pair(method, strategy)]
    return [Pair(method, strategy, file) for file in ZERO_FILES[METHODS[method].facts.result]]


PAIRS = [
    pair
    for method in METHODS
    for strategy, has in STRATEGIES.items()
    if method not in has.facts.refuses
    for pair in _named(method, strategy)
]
REFUSED = [(method, name) for name, has in STRATEGIES.items() for method in has.facts.refuses]
DISTRIBUTED = [pair for pair in PAIRS if pair.is_distributed]

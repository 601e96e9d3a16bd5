"""WHAT trains and what comes out: one small module for each method, and the table METHODS."""

from thriftune.config import LlamaAdapterConfig, LoraConfig, PartialConfig, PrefixConfig, Section
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.full import Full
from thriftune.methods.llama_adapter import LlamaAdapter
from thriftune.methods.lora import Lora
from thriftune.methods.partial import LayersAlike, Partial
from thriftune.methods.prefix import Prefix
from thriftune.methods.qlora import Qlora

__all__ = ["METHODS", "Trained", "TrainingMethod", "method_of"]

METHODS: dict[str, TrainingMethod] = {
    method.name: method for method in (Full(), Partial(), Lora(), Qlora(), Prefix(), LlamaAdapter())
}

# Methods with the same section train the same parts.
_BY_SECTION: dict[type[Section], TrainingMethod] = {
    PartialConfig: METHODS["partial"],
    LayersAlike: METHODS["partial"],
    LoraConfig: METHODS["lora"],
    PrefixConfig: METHODS["prefix"],
    LlamaAdapterConfig: METHODS["llama_adapter"],
}


def method_of(section: Section | None) -> TrainingMethod:
    """The method that trains what a section of a run file says.

    Args:
        section: What a method's `section` returned.
    """
    return METHODS["full"] if section is None else _BY_SECTION[type(section)]

"""WHAT trains and what comes out: one small module for each method, and the table METHODS."""

from thriftune.config import LoraConfig, PartialConfig, Section
from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.full import Full
from thriftune.methods.lora import Lora
from thriftune.methods.partial import LayersAlike, Partial
from thriftune.methods.qlora import Qlora

__all__ = ["METHODS", "Trained", "TrainingMethod", "method_of"]

METHODS: dict[str, TrainingMethod] = {method.name: method for method in (Full(), Partial(), Lora(), Qlora())}

# Methods with the same section train the same parts.
_BY_SECTION: dict[type[Section], TrainingMethod] = {
    PartialConfig: METHODS["partial"],
    LayersAlike: METHODS["partial"],
    LoraConfig: METHODS["lora"],
}


def method_of(section: Section | None) -> TrainingMethod:
    """The method that trains what a section of a run file says.

    Args:
        section: What a method's `section` returned.
    """
    return METHODS["full"] if section is None else _BY_SECTION[type(section)]

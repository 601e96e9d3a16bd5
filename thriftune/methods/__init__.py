"""WHAT trains and what comes out: one small module for each method, and the table METHODS."""

from thriftune.methods.base import Trained, TrainingMethod
from thriftune.methods.full import Full
from thriftune.methods.lora import Lora
from thriftune.methods.qlora import Qlora

__all__ = ["METHODS", "Trained", "TrainingMethod"]

METHODS: dict[str, TrainingMethod] = {method.name: method for method in (Full(), Lora(), Qlora())}

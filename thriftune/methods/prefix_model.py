"""A model with a trained prefix before each layer's keys and values, whose layers can be computed twice.

transformers (5.23) takes the cache away from layers that it recomputes, and peft (0.21) passes the prefix in the cache:
together they fail. Here torch recomputes the layers, which leaves their arguments alone; and the cache gives each layer
the prefix and the new keys without keeping the new ones, so that the second computation sees what the first one saw.
"""

from typing import Any

import torch
from peft import PeftModelForCausalLM
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, CheckpointWrapper
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from thriftune.models.architecture import layer_of

_REENTRANT = "use_reentrant"  # the implementation says so itself


class PrefixModel(PeftModelForCausalLM):
    """What peft makes for prefix tuning, with the recomputation of activations as it has to be done here."""

    def get_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The prefix as a cache; while it trains, one that does not grow."""
        cache: Any = super().get_prompt(*args, **kwargs)
        if not (self.training and torch.is_grad_enabled()):
            return cache
        fixed = DynamicCache()
        fixed.layers = [_Prefix(layer.keys, layer.values) for layer in cache.layers]
        fixed.layer_class_to_replicate = None
        return fixed

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Recompute each decoder layer in the backward pass.

        Args:
            activation_checkpointing_kwargs: Arguments of `torch.utils.checkpoint.checkpoint`.
        """
        options = {name: value for name, value in (activation_checkpointing_kwargs or {}).items() if name != _REENTRANT}
        base = self.get_base_model()
        for name in sorted({layer_of(name) for name, _ in base.named_parameters()} - {""}):
            layer = base.get_submodule(name)
            if not isinstance(layer, CheckpointWrapper):
                base.set_submodule(name, CheckpointWrapper(layer, CheckpointImpl.NO_REENTRANT, **options))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """The same by its older name.

        Args:
            gradient_checkpointing_kwargs: Arguments of `torch.utils.checkpoint.checkpoint`.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)


class _Prefix(DynamicLayer):
    """The cache of one layer: a prefix that stays as it is.

    Args:
        keys: Of the prefix, [rows, heads, tokens, width].
        values: Of the prefix, of the same shape.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._prefix = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix and the new keys and values, which are not kept."""
        keys, values = self._prefix
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

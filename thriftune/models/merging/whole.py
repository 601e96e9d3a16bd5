"""Merging a model that transformers converts while it loads it, such as one with fused experts: held as a whole."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.merging.mapped import Mapped
from thriftune.models.merging.sums import Sums, require_finite
from thriftune.models.rounding import RoundingMode, rounded

if TYPE_CHECKING:
    import torch

Opened = tuple[Mapped, Sums]


class AsAWhole:
    """A base model with an adapter on it, merged in place, with one model in memory at a time.

    Args:
        load: Loads the base model in the type to write, and puts the adapter on it.
        target: That type.
        seed: Seed of stochastic rounding.
        first: What `load` returns, if it was loaded already.
    """

    def __init__(
        self, load: Callable[[], Opened], target: "torch.dtype", seed: int, first: Opened | None = None
    ) -> None:
        self.target = target
        self._load, self._seed, self._opened = load, seed, first

    @property
    def size(self) -> int:
        """Bytes of the merged model."""
        elements: int = sum(parameter.numel() for parameter in self.opened[0].model.parameters())
        return elements * self.target.itemsize

    @property
    def opened(self) -> Opened:
        """The base model, and the same with the adapter."""
        self._opened = self._opened or self._load()
        return self._opened

    def write(self, directory: Path, mode: RoundingMode) -> None:
        """Write the merged model as transformers does, and let go of it.

        Args:
            directory: The directory of the new model.
            mode: How to round the weights that the adapter changes.
        """
        _, sums = self.opened
        self._opened = None
        _part_shared_weights(sums.adapted)
        merged = _merged(sums.adapted, mode, self._seed)
        for name in {*sums.replaced, *sums.written}:  # which were trained as a whole
            parameter = merged.get_parameter(name)
            parameter.data = rounded(parameter.data.float(), self.target, mode, name, self._seed)
        for name, parameter in merged.named_parameters():
            require_finite(parameter.data, name)
        _untie(merged)
        merged.save_pretrained(directory)


def _part_shared_weights(adapted: Any) -> None:
    """Give each adapted layer weights of its own: of embeddings and head that are one, peft would change both."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = Counter(id(parameter) for _, parameter in adapted.named_parameters(remove_duplicate=False))
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            for key, parameter in list(base.named_parameters(recurse=False)):
                if shared[id(parameter)] > 1:
                    setattr(base, key, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _untie(merged: Any) -> None:
    """Have a model keep its head where that is no longer the embedding; it would be overwritten when it is loaded."""
    import torch

    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if head is not None and not torch.equal(embedding.weight, head.weight):
        for part in (merged.config, merged.config.get_text_config()):
            part.tie_word_embeddings = False


def _merged(model: Any, mode: RoundingMode, seed: int) -> Any:
    """Merge layer by layer in fp32, and round each sum once; peft alone would round the adapter's part as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        held = {key: p for key, p in layer.get_base_layer().named_parameters(recurse=False) if p.is_floating_point()}
        types = {key: parameter.dtype for key, parameter in held.items()}
        for parameter in held.values():
            parameter.data = parameter.data.float()
        layer.merge(safe_merge=True)
        for key, parameter in held.items():
            parameter.data = rounded(parameter.data, types[key], mode, f"{name}.{key}", seed)
    return model.unload()

"""Keys and values of rows that come and go: the batch's cache, in which each row is padded on the left.

Left padding may be shifted at will: a key already carries its position, and what a row must not see is masked. So rows
join by padding the shorter cache, and after one left, columns that no row needs any more are cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(frozen=True)
class RowCache:
    """Keys and values of the rows of a batch.

    Attributes:
        layers: Keys and values of each layer, [rows, heads, tokens, width].
        mask: Which tokens each row sees, [rows, tokens].
    """

    layers: tuple[tuple["torch.Tensor", "torch.Tensor"], ...]
    mask: "torch.Tensor"

    @classmethod
    def of(cls, cache: Any, mask: "torch.Tensor") -> "RowCache":
        """What a forward pass left in a cache.

        Args:
            cache: The cache.
            mask: Which tokens each row sees, those of the pass among them.
        """
        return cls(tuple((layer.keys, layer.values) for layer in cache.layers), mask)

    def as_cache(self) -> "DynamicCache":
        """The cache for the next forward pass."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for keys, values in self.layers:
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # `update` would copy them
            cache.layers.append(layer)
        return cache

    def joined(self, other: "RowCache") -> "RowCache":
        """The rows of both, these first.

        Args:
            other: The others.
        """
        import torch

        length = max(self.mask.shape[1], other.mask.shape[1])
        # Part by part, so that one padded copy is there at a time: the cache may be most of the memory.
        layers = tuple(
            tuple(torch.cat([_padded(a, length), _padded(b, length)]) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.layers, other.layers, strict=True)
        )
        mask = torch.cat([_widened(self.mask, length), _widened(other.mask, length)])
        return RowCache(layers, mask)  # type: ignore[arg-type] # as below

    def only(self, rows: Sequence[int]) -> "RowCache":
        """Some of the rows, without the columns that are padding in all of them.

        Args:
            rows: Their numbers, at least one.
        """
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        mask = self.mask.index_select(0, index)
        first = int(mask.any(0).int().argmax())
        layers = tuple(
            tuple(part.index_select(0, index.to(part.device))[:, :, first:] for part in layer) for layer in self.layers
        )
        return RowCache(layers, mask[:, first:])  # type: ignore[arg-type] # a tuple of two comes out of two


def _padded(part: "torch.Tensor", length: int) -> "torch.Tensor":
    """Keys or values with padding on the left."""
    from torch.nn.functional import pad

    missing = length - part.shape[2]
    return pad(part, (0, 0, missing, 0)) if missing else part


def _widened(mask: "torch.Tensor", length: int) -> "torch.Tensor":
    """A mask that hides that padding."""
    from torch.nn.functional import pad

    return pad(mask, (length - mask.shape[1], 0))


def require_growing(cache: Any, source: object) -> None:
    """Refuse a model whose state is not keys and values of every token, since its rows could not join a batch.

    Args:
        cache: What a forward pass left.
        source: The model, for the message.

    Raises:
        ModelSourceError: Names the kind of its state.
    """
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", [cache])}
    if kinds != {"DynamicLayer"}:
        message = f"keeps {', '.join(sorted(kinds))} between tokens, which the server cannot batch."
        raise ModelSourceError.single("--base", source, message, "Answer with workflows/generate.py instead.")

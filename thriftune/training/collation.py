"""Collate rows of a prepared dataset into the tensors of a batch, padded or packed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Collator:
    """Makes a batch of rows.

    Attributes:
        tokenizer: The tokenizer, for its pad token.
        multiple: Row length is rounded up to a multiple of this, in tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    multiple: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Make input_ids and labels of a batch, each of shape [rows, tokens]."""
        length = self.length(rows)
        return {
            "input_ids": _filled([row["input_ids"] for row in rows], length, self.tokenizer.pad_token_id),
            "labels": _filled([row["labels"] for row in rows], length, IGNORED),
        }

    def length(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Length of the longest row in tokens, rounded up to the multiple."""
        longest = max(len(row["input_ids"]) for row in rows)
        return -(-longest // self.multiple) * self.multiple


class PaddingCollator(Collator):
    """Pads rows to the longest in their batch, with an attention mask that excludes the padding."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Make input_ids, attention_mask and labels of a batch, each of shape [rows, tokens]."""
        mask = _filled([[1] * len(row["input_ids"]) for row in rows], self.length(rows), 0)
        return {**super().__call__(rows), "attention_mask": mask}


class PackedCollator(Collator):
    """Pads packed rows, without an attention mask: positions that restart keep their examples apart.

    transformers (5.23) finds the examples of a row by the position ids, but only without an attention mask and without
    a cache; with either, later examples silently see earlier ones. The padding counts as one more example.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Make input_ids, position_ids and labels of a batch, each of shape [rows, tokens]."""
        length = self.length(rows)
        positions = [[*row["position_ids"], *range(length - len(row["position_ids"]))] for row in rows]
        return {**super().__call__(rows), "position_ids": _filled(positions, length, 0)}


def _filled(values: Sequence[Sequence[int]], length: int, value: int) -> "torch.Tensor":
    import torch

    return torch.tensor([[*row, *[value] * (length - len(row))] for row in values], dtype=torch.int64)

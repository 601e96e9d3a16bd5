"""From rows of a prepared dataset to the tensors of a batch: padded, or packed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows to the longest of their batch, with an attention mask that leaves the padding out.

    Attributes:
        tokenizer: For the pad token.
        multiple: Lengths are rounded up to a multiple of it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    multiple: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Input_ids, attention_mask and labels of a batch, each of shape [rows, longest]."""
        length = _padded_length(rows, self.multiple)
        return {
            "input_ids": _padded(rows, "input_ids", length, self.tokenizer.pad_token_id),
            "attention_mask": _filled([[1] * len(row["input_ids"]) for row in rows], length, 0),
            "labels": _padded(rows, "labels", length, IGNORED),
        }


@dataclass(frozen=True)
class PackedCollator:
    """Pads packed rows, without an attention mask: positions that restart keep their examples apart.

    transformers (5.23) finds the examples of a row in the position ids, but only where no attention mask is given and
    no cache is used; with either, later examples silently see earlier ones. The padding is one more example.

    Attributes:
        tokenizer: For the pad token.
        multiple: Lengths are rounded up to a multiple of it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    multiple: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Input_ids, position_ids and labels of a batch, each of shape [rows, longest]."""
        length = _padded_length(rows, self.multiple)
        positions = [[*row["position_ids"], *range(length - len(row["position_ids"]))] for row in rows]
        return {
            "input_ids": _padded(rows, "input_ids", length, self.tokenizer.pad_token_id),
            "position_ids": _filled(positions, length, 0),
            "labels": _padded(rows, "labels", length, IGNORED),
        }


def _padded_length(rows: Sequence[Mapping[str, Any]], multiple: int) -> int:
    longest = max(len(row["input_ids"]) for row in rows)
    return -(-longest // multiple) * multiple


def _padded(rows: Sequence[Mapping[str, Any]], column: str, length: int, value: int) -> "torch.Tensor":
    return _filled([row[column] for row in rows], length, value)


def _filled(values: Sequence[Sequence[int]], length: int, value: int) -> "torch.Tensor":
    import torch

    return torch.tensor([[*row, *[value] * (length - len(row))] for row in values], dtype=torch.int64)

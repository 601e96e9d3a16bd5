"""Rows that are decoded in one forward pass, with their cache."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thriftune.inference.serving.asking import Ask
from thriftune.inference.serving.cache import RowCache
from thriftune.inference.serving.choosing import Choice, choose
from thriftune.inference.serving.loaded import Kind, Loaded
from thriftune.inference.serving.text import AnswerText

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(eq=False)
class Row:
    """One answer that is being made.

    Attributes:
        ask: The request.
        text: Its answer so far.
        choice: How its tokens are chosen.
        seen: The tokens of its question and answer.
    """

    ask: Ask
    text: AnswerText
    choice: Choice
    seen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = list(self.ask.prompt)


class Batch:
    """Rows of one or several adapters."""

    def __init__(self, loaded: Loaded, kind: Kind) -> None:
        """Make a batch without rows.

        Args:
            loaded: The model and its adapters.
            kind: Whose rows these are.
        """
        self.rows: list[Row] = []
        self._loaded = loaded
        self._kind = kind
        self._cache: RowCache | None = None

    def join(self, newcomers: Sequence[Row]) -> list[int | None]:
        """Read the questions of new rows, which join the batch.

        Args:
            newcomers: The rows.

        Returns:
            The first token of each, as `choose` gives them.
        """
        import torch

        device = self._loaded.device
        longest = max(len(row.ask.prompt) for row in newcomers)
        padding = self._loaded.tokenizer.pad_token_id or 0
        ids = torch.full((len(newcomers), longest), padding, device=device)
        mask = torch.zeros((len(newcomers), longest), dtype=torch.long, device=device)
        for number, row in enumerate(newcomers):
            ids[number, longest - len(row.ask.prompt) :] = torch.tensor(row.ask.prompt, device=device)
            mask[number, longest - len(row.ask.prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        tokens, cache = self._forward(newcomers, ids, mask, positions, RowCache((), mask).as_cache())
        self._cache = cache if self._cache is None else self._cache.joined(cache)
        self.rows += newcomers
        return tokens

    def step(self) -> list[int | None]:
        """Read the last token of each row.

        Returns:
            The next one of each, as `choose` gives them.
        """
        import torch

        assert self._cache is not None, "a batch without rows has no turn"
        ids = torch.tensor([[row.seen[-1]] for row in self.rows], device=self._loaded.device)
        mask = torch.nn.functional.pad(self._cache.mask, (0, 1), value=1)
        positions = mask.sum(-1, keepdim=True) - 1
        known = self._cache.as_cache()
        self._cache = None  # else the old keys and values of all layers would stay beside the new ones
        tokens, self._cache = self._forward(self.rows, ids, mask, positions, known)
        return tokens

    def drop(self, leaving: Collection[Row]) -> None:
        """Let rows leave.

        Args:
            leaving: The rows; those that are not in the batch are no error.
        """
        staying = [number for number, row in enumerate(self.rows) if row not in leaving]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in staying]
        self._cache = self._cache.only(staying) if self._cache is not None and staying else None

    def _forward(
        self,
        rows: Sequence[Row],
        ids: "torch.Tensor",
        mask: "torch.Tensor",
        positions: "torch.Tensor",
        known: "DynamicCache",
    ) -> tuple[list[int | None], RowCache]:
        """One forward pass: the next token of each row, and what the model now knows of them."""
        import torch

        with torch.inference_mode(), self._loaded.answering(self._kind, [row.ask.model for row in rows]) as options:
            output = self._loaded.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=known,
                use_cache=True,
                **options,
            )
            tokens = choose(output.logits[:, -1], [row.choice for row in rows], [row.seen for row in rows])
            return tokens, RowCache.of(output.past_key_values, mask)

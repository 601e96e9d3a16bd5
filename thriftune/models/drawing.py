"""Drawing tokens so that an answer depends on its own seed alone, whichever answers are written beside it."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Draws:
    """Turns scores so that the highest of each row is a draw from its distribution (the Gumbel-max trick).

    A model's `generate` draws all rows of a batch from one stream of random numbers: what a row gets depends on the
    rows beside it. Here each row has its own stream. It is called in place of drawing: `do_sample` has to be false.

    Args:
        seeds: The seed of each row.
        temperature: Above 0.

    Source: Gumbel, Statistical theory of extreme values, 1954; argmax(p / e) with exponential e draws from p.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._seeds, self._temperature = seeds, temperature
        self._streams: list[torch.Generator] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """The scores of the next token of each row, with its noise.

        Args:
            input_ids: Tokens so far. Shape [rows, length].
            scores: Shape [rows, vocabulary].
        """
        import torch

        if not self._streams:
            self._streams = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        noise = torch.stack([torch.empty_like(scores[0]).exponential_(generator=stream) for stream in self._streams])
        return scores / self._temperature - noise.log()


def choosing(seeds: Sequence[int], temperature: float) -> dict[str, object]:
    """Arguments of a model's `generate` that say how it chooses tokens.

    Args:
        seeds: The seed of each row.
        temperature: 0 always takes the likeliest token.
    """
    from transformers import LogitsProcessorList

    likeliest: dict[str, object] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        likeliest["logits_processor"] = LogitsProcessorList([Draws(seeds, temperature)])
    return likeliest


def seed_of(seed: int, *parts: str) -> int:
    """A seed for one item.

    Args:
        seed: Of all.
        *parts: What the item is known by.
    """
    digest = hashlib.blake2b("\0".join((str(seed), *parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")

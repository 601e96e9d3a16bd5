"""Rounding weights to fewer bits: to the nearest number, or stochastically, which keeps the sum of many small changes.

Weights of a 16-bit base model lie exactly on the grid of their type, and a short training with a small learning rate
moves most of them by less than half its spacing: rounding to the nearest number puts these back where they were.
Stochastic rounding picks one of the two neighbours, with probabilities that keep the mean, so that what many weights
learnt together survives. The cost of each is measured on held-out rows before a model is saved
(`thriftune.models.saving`).
"""

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

RoundingMode = Literal["none", "nearest", "stochastic"]

# Temporaries of one piece are 20 bytes an element: 320 MiB, whatever the size of an embedding table.
_PIECE = 2**24


def rounded(weight: "torch.Tensor", dtype: "torch.dtype", mode: RoundingMode, name: str, seed: int) -> "torch.Tensor":
    """A weight in another type, identical on every rank and in every call with the same name and seed.

    Args:
        weight: The weight in fp32, of any shape.
        dtype: Type to round to.
        mode: How to round; `none` if the type can hold every number of the weight, as fp32 does in every mode.
        name: Name of the weight; each name has its own random numbers.
        seed: Seed of the run.
    """
    import torch

    if mode != "stochastic" or dtype == torch.float32:
        return weight.to(dtype)

    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest[:7], "big"))
    result = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for piece, into in zip(weight.reshape(-1).split(_PIECE), result.view(-1).split(_PIECE), strict=True):
        into.copy_(_stochastically(piece, dtype, generator))
    return result


def _stochastically(weight: "torch.Tensor", dtype: "torch.dtype", generator: "torch.Generator") -> "torch.Tensor":
    """One of the two neighbours of each number; the nearer one is more likely. Source: arXiv 2010.06192."""
    import torch

    near = weight.to(dtype)
    away = weight - near.float()  # exact: the two are within a factor of two, or one is 0
    # The bits of a float count magnitudes in order: adding one gives the next number away from zero.
    bits = near.view(torch.int16)
    outwards = torch.where((near > 0) | ((near == 0) & (away > 0)), away > 0, away < 0)
    step = torch.where(outwards, 1, -1).to(torch.int16)
    # From zero, both neighbours are away from it; take the one with the weight's sign.
    signed_zero = torch.copysign(torch.zeros_like(near), away.to(dtype)).view(torch.int16)
    other = (torch.where(near == 0, signed_zero, bits) + torch.where(near == 0, 1, step).to(torch.int16)).view(dtype)
    chance = away.abs() / (other.float() - near.float()).abs()
    taken = torch.rand(weight.shape, generator=generator, device=weight.device) < chance
    # A number that is infinite, or rounds to infinity, has no second neighbour.
    return torch.where(taken & torch.isfinite(near) & torch.isfinite(other), other, near)

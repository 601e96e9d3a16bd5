"""How far an export may be from what was trained, by its kind. docs/exporting.md says what is usual.

Every limit is more than twice what was measured on SmolLM2-135M, so that a quantizer's usual loss passes on small
models, which lose most. A fault is far above in one of them: a wrong order of rows changes a matrix by 1.3 of its norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

# Of a model that loses answers no more often than it may, one comparison in a hundred would fail.
_BY_CHANCE = 0.01


@dataclass(frozen=True)
class Allowed:
    """The limits of a kind of export.

    Attributes:
        kl: Most KL divergence of the next token, the mean over the compared tokens, in nats.
        tied: Tokens that the reference holds likely within so many nats count as equally likely: which of them a
            quantized model has first is chance.
        agreement: Least share of tokens whose likeliest next token is the reference's, or tied with it.
        weights: Most relative error of a weight matrix, as the norm of the difference by the norm.
        stops: How likely an answer that stopped may be one that does not; `fewest_stopping` allows for chance.
    """

    kl: float
    tied: float
    agreement: float
    weights: float
    stops: float


# What is the same numbers, but for the order in which they are added.
EXACT = Allowed(kl=1e-5, tied=0.01, agreement=0.999, weights=1e-6, stops=0.0)
_HALF = Allowed(kl=1e-3, tied=0.05, agreement=0.98, weights=2e-3, stops=0.05)
_BFLOAT = Allowed(kl=1e-2, tied=0.1, agreement=0.95, weights=5e-3, stops=0.05)
_EIGHT_BITS = Allowed(kl=0.03, tied=0.1, agreement=0.90, weights=0.03, stops=0.25)
# bitsandbytes' has one scale a row, and rounds what it multiplies to 8 bits too.
_INT8 = Allowed(kl=0.15, tied=0.2, agreement=0.85, weights=0.05, stops=0.25)
_FOUR_BITS = Allowed(kl=1.2, tied=0.5, agreement=0.50, weights=0.25, stops=0.5)

ALLOWED: Mapping[str, Allowed] = {
    "merged": _BFLOAT,  # rounded once, to the type of the base
    "served": EXACT,
    "fp32": EXACT,
    "fp16": _HALF,
    "bf16": _BFLOAT,
    "gguf-f16": _HALF,
    "gguf-q8_0": _EIGHT_BITS,
    "int8": _INT8,
    "nf4": _FOUR_BITS,
    "gguf-q4_0": _FOUR_BITS,
}


def fewest_stopping(stopped: int, lost: float) -> int:
    """How many answers have to stop of those that stopped before: with fewer, more than chance is at work.

    A share of a few answers falls by chance: of eight that stop half the time, three fewer stop once in ten times.

    Args:
        stopped: Answers that stopped.
        lost: How likely each may be one that no longer does.

    Returns:
        The smallest number that is not less likely than 1 %.
    """
    likely = 0.0
    for kept in range(stopped + 1):
        likely += comb(stopped, kept) * (1 - lost) ** kept * lost ** (stopped - kept)
        if likely >= _BY_CHANCE:
            return kept
    return stopped

"""The next tokens that a model holds likely on rows, of which one model is in memory at a time."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from thriftune.inference.parity.rows import Row
from thriftune.models.substitution import computing_with

if TYPE_CHECKING:
    import torch

# Bytes of the reference's log-probabilities that are kept for the comparison.
_KEPT_BYTES = 1 << 29


def first_tokens(rows: Sequence[Row], vocabulary: int) -> list[Row]:
    """The first rows whose log-probabilities can be kept in memory; of a long first one, its first tokens.

    Args:
        rows: Rows.
        vocabulary: Number of tokens that a model knows.
    """
    taken: list[Row] = []
    left = _KEPT_BYTES // (4 * vocabulary)
    for row in rows:
        if not row.trained:
            continue
        if taken and len(row.trained) > left:
            break
        trained = row.trained[: max(1, left)]
        taken.append(Row(row.tokens[: trained[-1] + 1], trained))
        left -= len(trained)
    return taken


def log_probabilities(model: Any, rows: Sequence[Row]) -> "Iterator[torch.Tensor]":
    """The log-probabilities of every next token at the trained positions, row by row.

    Args:
        model: A language model in evaluation mode.
        rows: Rows.

    Yields:
        A tensor [trained positions, vocabulary] in 32 bits for each row.
    """
    import torch

    device = next(model.parameters()).device
    can_skip = "logits_to_keep" in inspect.signature(getattr(model, "forward", model)).parameters
    with in_fp32(model), torch.no_grad():
        for row in rows:
            start = row.trained[0] - 1 if can_skip else 0  # before it, no numbers for the whole vocabulary are made
            kept = {"logits_to_keep": len(row.tokens) - start} if can_skip else {}
            logits = model(input_ids=torch.tensor([row.tokens], device=device), **kept).logits[0]
            before = torch.tensor([place - 1 - start for place in row.trained], device=logits.device)
            yield logits[before].float().log_softmax(-1).cpu()


def in_fp32(model: Any) -> AbstractContextManager[None]:
    """Compute in 32 bits, weight by weight, where a model is held in 16; a quantized one computes as it does.

    Args:
        model: The model.
    """
    import torch

    is_plain = all(parameter.is_floating_point() for parameter in model.parameters())
    if not is_plain or all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return nullcontext()
    return computing_with(model, lambda _, parameter: parameter.detach().float())

"""Whether a merged model is what was trained: losses and next tokens on held-out rows, computed weight by weight."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.hardware import Precision
from thriftune.models import saving
from thriftune.models.merging.mapped import Mapped
from thriftune.models.merging.sums import Sums
from thriftune.models.next_tokens import Compared, Comparison, Kept, Seen
from thriftune.models.rounding import RoundingMode
from thriftune.models.saving import SavedWeights
from thriftune.models.substitution import computing_with

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Tokens of one pass over the rows on which the merged model is compared: minutes on the four CPUs of a pod.
COMPARED_OPERATIONS = 2e13
# Each pass over a batch converts every weight to fp32 once; of a large model only a few rows are measured anyway.
ROWS_AT_ONCE = 8
_NAMES: dict[str, Precision] = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


class HeldOutRows(Protocol):
    """Held-out rows, and the loss of a model on them (`thriftune.training.held_out`)."""

    def first_tokens(self, count: float) -> "HeldOutRows":
        """The first rows with at most `count` tokens in total, and at least one row."""

    def loss(self, model: Any, seen: Seen | None = None) -> float:
        """Mean negative log-likelihood per trained token, in nats; `seen` is told of each row's outputs."""

    def __len__(self) -> int: ...


class Way(Protocol):
    """One of the ways to merge.

    Attributes:
        target: Type of the written weights.
    """

    target: "torch.dtype"

    @property
    def size(self) -> int:
        """Bytes of the merged model."""

    @property
    def opened(self) -> tuple[Mapped, Sums]:
        """The base model, and the same with the adapter."""

    def write(self, directory: Path, mode: RoundingMode) -> None:
        """Write the merged model, without its tokenizer."""


@dataclass(frozen=True)
class MergedWeights(SavedWeights):
    """How a merged model is saved, and what that costs.

    Attributes:
        next_tokens: Its next tokens beside those of the adapter on its base, on some of the trained tokens.
        difference: In what it is not what was trained, as a sentence; empty if it is.
    """

    next_tokens: Compared | None = None
    difference: str = ""

    @property
    def remarks(self) -> list[str]:
        """Sentences about what is not as it was trained, and what rounding loses."""
        return [*([self.difference] if self.difference else []), *super().remarks]


@dataclass(frozen=True)
class _Trained:
    """What was trained, on held-out rows.

    Attributes:
        rows: The rows.
        before: Loss of the base model.
        loss: Loss of the adapter on it.
        likely: Its next tokens.
    """

    rows: HeldOutRows
    before: float
    loss: float
    likely: Kept


def written_as_trained(
    way: Way,
    held_out: HeldOutRows | None,
    write: Callable[[RoundingMode], None],
    load: Callable[[], Mapped],
    tied: float,
) -> MergedWeights | None:
    """Write the merged model, rounded in the way that keeps what was trained.

    Args:
        way: The way to merge.
        held_out: Rows to compare it on with the adapter on its base; None to compare nothing.
        write: Writes the model.
        load: Loads what was written.
        tied: Tokens that the adapter on its base holds likely within so many nats are equally likely.

    Returns:
        The measured losses and next tokens; None where none were. That is also where the model's code multiplies by
        the weight of a module other than the running one, which is still in 16 bits (Jamba's convolutions, and peft's
        single trained tokens where the head is the embedding).
    """
    trained = _measured(way, held_out) if held_out is not None else None
    if trained is None:
        write("nearest")
        return None
    compared: dict[RoundingMode, Compared] = {}

    def loss_of(_: Precision, mode: RoundingMode) -> float:
        write(mode)
        merged, comparison = load(), Comparison(tied)
        loss = _loss(merged.model, merged, trained.rows, trained.likely.beside(comparison))
        compared[mode] = comparison.compared
        return loss

    rows, dtype = len(trained.rows), _NAMES[str(way.target)]
    decided = saving.decide(dtype, rows, trained.before, lambda: trained.loss, loss_of, or_fp32=False)
    if decided.rounding != list(compared)[-1]:
        write(decided.rounding)
    found = compared[decided.rounding]
    logger.info("Merged, beside the adapter on its base, on %d tokens of these rows: %s", found.tokens, found.text)
    return MergedWeights(**vars(decided), next_tokens=found)


def _measured(way: Way, held_out: HeldOutRows) -> _Trained | None:
    """What was trained, on the rows that can be afforded; None if it cannot be measured."""
    mapped, sums = way.opened
    parameters = sum(parameter.numel() for parameter in sums.adapted.parameters())
    rows = held_out.first_tokens(COMPARED_OPERATIONS / (2 * parameters))
    likely = Kept(len(rows))
    try:
        with sums.disabled():
            before = _loss(sums.adapted, mapped, rows)
        return _Trained(rows, before, _loss(sums.adapted, mapped, rows, likely.keep), likely)
    except RuntimeError as error:
        logger.warning("The merged model cannot be compared with the adapter on its base: %s", error)
        return None


def _loss(model: Any, mapped: Mapped, rows: HeldOutRows, seen: Seen | None = None) -> float:
    with in_fp32(model, mapped):
        return rows.loss(model, seen)


@contextmanager
def in_fp32(model: Any, mapped: Mapped) -> Iterator[None]:
    """Compute in fp32, weight by weight: CPUs are fast in it, and it shows small differences.

    Not for parameters that peft wraps (fused experts): it replaces them while the module runs.

    Args:
        model: The model that computes.
        mapped: The model whose weights it has.
    """
    import torch
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        yield
        return

    def weight_of(_: str, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        weight = parameter.detach().to(torch.float32, copy=True)
        mapped.release(parameter)
        return weight

    def release(layer: Any, *_: Any) -> None:  # DoRA reads the weight of its base once more
        for parameter in layer.get_base_layer().parameters():
            mapped.release(parameter)

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    hooks = [layer.register_forward_hook(release) for layer in layers]
    try:
        with computing_with(model, weight_of):
            yield
    finally:
        for hook in hooks:
            hook.remove()

"""Whether a merged model is what was trained: losses on held-out rows, computed weight by weight."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.hardware import Precision
from thriftune.models import saving
from thriftune.models.merging.mapped import Mapped
from thriftune.models.merging.sums import Sums
from thriftune.models.rounding import RoundingMode
from thriftune.models.saving import SavedWeights
from thriftune.models.substitution import computing_with

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Tokens of one pass over the rows on which the merged model is compared: minutes on the four CPUs of a pod.
COMPARED_OPERATIONS = 2e13
_NAMES: dict[str, Precision] = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


class HeldOutRows(Protocol):
    """Held-out rows, and the loss of a model on them (`thriftune.training.held_out`)."""

    def first_tokens(self, count: float) -> "HeldOutRows":
        """The first rows with at most `count` tokens in total, and at least one row."""

    def loss(self, model: Any) -> float:
        """Mean negative log-likelihood per trained token, in nats."""

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


def written_as_trained(
    way: Way, held_out: HeldOutRows | None, write: Callable[[RoundingMode], None], load: Callable[[], Mapped]
) -> SavedWeights | None:
    """Write the merged model, rounded in the way that keeps what was trained.

    Args:
        way: The way to merge.
        held_out: Rows to compare it on with the adapter on its base; None to compare nothing.
        write: Writes the model.
        load: Loads what was written.

    Returns:
        The measured losses; None where none were. That is also where the model's code multiplies by the weight of a
        module other than the running one, which is still in 16 bits (Jamba's convolutions).
    """
    measured = _measured(way, held_out) if held_out is not None else None
    if measured is None:
        write("nearest")
        return None
    rows, before, trained = measured
    written: list[RoundingMode] = []

    def loss_of(_: Precision, mode: RoundingMode) -> float:
        written.append(mode)
        write(mode)
        merged = load()
        return _loss(merged.model, merged, rows)

    decided = saving.decide(_NAMES[str(way.target)], len(rows), before, lambda: trained, loss_of, or_fp32=False)
    if decided.rounding != written[-1]:
        write(decided.rounding)
    return decided


def _measured(way: Way, held_out: HeldOutRows) -> tuple[HeldOutRows, float, float] | None:
    """The rows to compare on, and the losses of the base model and of the adapter on it; None if they cannot be had."""
    mapped, sums = way.opened
    parameters = sum(parameter.numel() for parameter in sums.adapted.parameters())
    rows = held_out.first_tokens(COMPARED_OPERATIONS / (2 * parameters))
    try:
        with sums.disabled():
            before = _loss(sums.adapted, mapped, rows)
    except RuntimeError as error:
        logger.warning("The merged model cannot be compared with the adapter on its base: %s", error)
        return None
    return rows, before, _loss(sums.adapted, mapped, rows)


def _loss(model: Any, mapped: Mapped, rows: HeldOutRows) -> float:
    with in_fp32(model, mapped):
        return rows.loss(model)


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

"""The precision of a saved result: 16 bits if that keeps what was learnt, which is measured on held-out rows.

It is decided here and nowhere else.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thriftune import distributed
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.hardware import Precision
from thriftune.models.rounding import RoundingMode

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# 16-bit types, as torch prints them; all others are saved in fp32.
_STORED: dict[str, Precision] = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
SaveDtype = Literal["auto", "fp16", "bf16", "fp32"]

# The cost that rounding may have, as a share of the change that training made in the held-out loss.
TOLERATED_SHARE = 0.05
# Nats; smaller differences arise from the order in which a device adds.
_NOISE = 2e-5
# Most held-out rows to measure: the same rows before and after rounding, so that a few show the difference, and
# fp32 is slow on the GPUs at hand.
ROWS = 64
# The first one costs less if changes are larger than the spacing of the numbers, as after long trainings.
_MODES: tuple[RoundingMode, ...] = ("nearest", "stochastic")
_UNROUNDED: tuple[RoundingMode, ...] = ("none",)


@dataclass(frozen=True)
class SavedWeights:
    """How a result is saved, and what that costs.

    Losses are means over the trained tokens of held-out rows, in nats, computed in fp32.

    Attributes:
        dtype: Type of the saved weights.
        rounding: How they were rounded to that type.
        rows: Number of held-out rows measured.
        base_loss: Loss of the model before training.
        trained_loss: Loss of the trained model before rounding.
        saved_loss: Loss of the model as it is saved.
        rounded_loss: The lowest loss in 16 bits, if fp32 is saved because of it.
    """

    dtype: Precision
    rounding: RoundingMode
    rows: int
    base_loss: float
    trained_loss: float
    saved_loss: float
    rounded_loss: float | None = None

    @property
    def cost(self) -> float:
        """The held-out loss that saving added, in nats."""
        return self.saved_loss - self.trained_loss

    @property
    def how(self) -> str:
        """The type, and the rounding if it is not the usual one."""
        return f"{self.dtype}, rounded stochastically" if self.rounding == "stochastic" else self.dtype

    @property
    def tolerated(self) -> float:
        """The held-out loss that saving may add, in nats."""
        return max(TOLERATED_SHARE * abs(self.base_loss - self.trained_loss), _NOISE)

    @property
    def remarks(self) -> list[str]:
        """A sentence about what saving in 16 bits loses, where it loses too much; also where fp32 is saved instead."""
        if self.rounded_loss is None and self.cost <= self.tolerated:
            return []
        bits, loss, instead = str(self.dtype), self.saved_loss, ""
        if self.rounded_loss is not None:
            bits, loss, instead = "16 bits", self.rounded_loss, " The weights are saved in fp32."
        return [
            f"Saving in {bits} loses part of what was learnt: on {self.rows} held-out rows the loss is {loss:.4f}, "
            f"and {self.trained_loss:.4f} before it is saved ({self.base_loss:.4f} before training).{instead}"
        ]


# The held-out loss of the trained model, rounded to a type in one of the ways.
LossOf = Callable[[Precision, RoundingMode], float]


def sixteen_bits(trained_in: Precision, base_dtype: str) -> Precision:
    """The 16-bit type of a result.

    Args:
        trained_in: Precision it was trained in.
        base_dtype: Type in which the base model is stored, as torch prints it (torch.float16).

    Returns:
        The type it trained in; after fp32 training the base model's own, or bf16.
    """
    if trained_in != "fp32":
        return trained_in
    return "fp16" if base_dtype == "torch.float16" else "bf16"


def lossless(base_dtype: str) -> Precision:
    """The type of a result that holds weights of the base model as they are: the base model's own.

    Args:
        base_dtype: Type in which the base model is stored, as torch prints it (torch.float16).
    """
    return _STORED.get(base_dtype, "fp32")


def mode_of(parameter: "torch.nn.Parameter", mode: RoundingMode) -> RoundingMode:
    """How a weight is rounded when it is saved: what does not train to the nearest number, which mostly is itself.

    Args:
        parameter: The weight.
        mode: How those that train are rounded.
    """
    return mode if parameter.requires_grad else "nearest"


def bytes_at_most(config: RunConfig) -> int:
    """Most bytes per weight of the result: `auto` chooses fp32 if 16 bits lose what full training learnt.

    Args:
        config: The run.
    """
    asked = config.training.save_dtype
    may_be_fp32 = asked == "fp32" or (asked == "auto" and METHODS[config.method].trains_weights)
    return 4 if may_be_fp32 else 2


def unmeasured(asked: SaveDtype) -> tuple[Precision, RoundingMode]:
    """How to save a model whose loss cannot be measured: nothing is lost, unless the run asks for 16 bits.

    Args:
        asked: `training.save_dtype`.

    Returns:
        The type and the rounding.
    """
    if asked == "auto" or asked == "fp32":  # noqa: PLR1714 - mypy narrows these, and no membership
        return "fp32", "none"
    return asked, "nearest"


def decide(
    dtype: Precision,
    rows: int,
    base_loss: float,
    trained_loss: Callable[[], float],
    loss_of: LossOf,
    *,
    or_fp32: bool,
) -> SavedWeights:
    """How to save a trained model so that it stays what was trained.

    Args:
        dtype: Type to save it in.
        rows: Number of held-out rows that the losses are measured on.
        base_loss: Loss of the model before training, in nats.
        trained_loss: Measures the loss of the trained model before rounding.
        loss_of: Measures the loss of the model that would be saved, for a type and a rounding.
        or_fp32: Whether fp32 is saved if 16 bits cost too much; else 16 bits are saved, with a warning.

    Returns:
        The first rounding that costs no more than `TOLERATED_SHARE` of what training changed; if there is none, fp32 or
        the better rounding.
    """
    trained = trained_loss()
    _say(
        logging.INFO, "On %d held-out rows, in fp32: loss %.4f before training, %.4f after it", rows, base_loss, trained
    )
    tried: list[SavedWeights] = []
    for mode in _MODES if dtype != "fp32" else _UNROUNDED:
        way = SavedWeights(dtype, mode, rows, base_loss, trained, loss_of(dtype, mode))
        _say(logging.INFO, "The same rows, as saved in %s: %.4f (rounding: %s)", dtype, way.saved_loss, mode)
        if way.cost <= way.tolerated:
            return way
        tried.append(way)
    best = min(tried, key=lambda way: math.inf if math.isnan(way.cost) else way.cost)
    if or_fp32:
        best = SavedWeights("fp32", "none", rows, base_loss, trained, trained, best.saved_loss)
    advice = "" if or_fp32 else " Set training.save_dtype: fp32, or train for longer."
    _say(logging.WARNING, "%s%s", *best.remarks, advice)
    return best


def _say(level: int, message: str, *values: object) -> None:
    """Log once, not on every rank."""
    if distributed.current_rank().is_main:
        logger.log(level, message, *values)

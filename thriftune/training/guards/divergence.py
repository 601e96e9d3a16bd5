"""Detect divergence from the losses alone, without clock, files or torch: equal losses give an equal verdict."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal, Self, TypedDict

# Number of losses in the recent range: enough that the median ignores a few odd batches, few enough to follow a
# training whose loss falls fast.
WINDOW = 50
# Times the typical loss. A language model that fell apart predicts tokens by their frequency, at 7 to 8 nats whatever
# the model; fine-tuning starts at 1 to 3.5. So 2 catches all of these, and 3 would miss those that start above 2.5.
SPIKE = 2.0
# Number of losses in a row. One bad document makes one high loss, and a disturbed optimizer recovers within a few
# steps; what lasts for ten steps does not recover by itself.
PATIENCE = 10
# DeepSpeed's smallest loss scale. Below 1, scaling makes fp16 gradients smaller than without it.
SCALE_FLOOR = 1.0

# A loss this many standard deviations from the median is not noise, however noisy the batches.
_DEVIATIONS = 6.0
# The median absolute deviation of a normal distribution times this is its standard deviation.
_MAD_TO_DEVIATION = 1.4826
# Nats. From 0.02 to 0.06 is threefold but no divergence: a model that has memorized its rows met a harder batch.
_LEAST_RISE = 0.5

Kind = Literal["nan", "infinite", "spike", "scale-floor"]


@dataclass(frozen=True)
class Divergence:
    """A training that will not recover by itself.

    Attributes:
        step: Step at which that became certain.
        since: Step at which it began: the first of the losses in a row.
        kind: What showed it.
        loss: Loss at that step, in nats per token.
        message: All of it as a sentence, with numbers.
    """

    step: int
    since: int
    kind: Kind
    loss: float
    message: str


class GuardState(TypedDict):
    """What a guard has seen, as JSON. A checkpoint contains it, so that a resumed run knows the losses before it.

    Attributes:
        losses: The last finite losses that were not suspicious, oldest first.
        typical: Median and standard deviation of the window with the lowest median so far; null before the first.
        above: Steps in a row whose losses were far above that.
        at_floor: Steps in a row whose loss scales were at the floor.
    """

    losses: list[float]
    typical: tuple[float, float] | None
    above: list[int]
    at_floor: list[int]


class DivergenceGuard:
    """Gets every loss and says when to stop.

    High losses are compared with the window whose median was lowest, and are not added to the window: otherwise a loss
    that climbs for hundreds of steps would raise the limit it is compared with.
    """

    def __init__(
        self, window: int = WINDOW, spike: float = SPIKE, patience: int = PATIENCE, scale_floor: float = SCALE_FLOOR
    ) -> None:
        """Start with nothing seen.

        Args:
            window: Number of losses in the recent range. A spike can be detected after half of them.
            spike: A loss counts as high above this many times the typical loss, if it is above the noise too.
            patience: Number of high losses, or of loss scales at the floor, in a row that count as divergence.
            scale_floor: Loss scale that dynamic scaling does not go below.
        """
        self._losses: deque[float] = deque(maxlen=window)
        self._window = window
        self._spike, self._patience, self._scale_floor = spike, patience, scale_floor
        self._typical: tuple[float, float] | None = None
        self._above: list[int] = []
        self._at_floor: list[int] = []

    def observe(self, step: int, loss: float, loss_scale: float | None = None) -> Divergence | None:
        """Take in one loss.

        Args:
            step: Optimizer step.
            loss: Loss of that step, unscaled, in nats per token; or the mean of the steps since the last call. Never a
                value of the gradients: under dynamic loss scaling a step whose gradients overflow is skipped by design,
                and its loss is finite.
            loss_scale: Present loss scale, only with fp16 and dynamic scaling. Under bf16, and with a fixed scale,
                leave it out: DeepSpeed reports 1 there, which is not a floor.

        Returns:
            The divergence; None if there is none. After a divergence the counts start again, so that a caller who
            lowers the learning rate may continue.
        """
        if not math.isfinite(loss):
            kind: Kind = "nan" if math.isnan(loss) else "infinite"
            self._above, self._at_floor = [], []
            return Divergence(step, step, kind, loss, f"The loss is {loss} at step {step}.")
        return self._floor(step, loss, loss_scale) or self._high(step, loss)

    @property
    def is_suspicious(self) -> bool:
        """Whether the last loss was far above its recent range, or the last loss scale at its floor.

        What is trained now may be useless, so older checkpoints must not be replaced by it.
        """
        return bool(self._above or self._at_floor)

    def state(self) -> GuardState:
        """What was seen, as plain values that survive JSON."""
        return GuardState(
            losses=list(self._losses), typical=self._typical, above=list(self._above), at_floor=list(self._at_floor)
        )

    @classmethod
    def from_state(
        cls,
        state: GuardState,
        window: int = WINDOW,
        spike: float = SPIKE,
        patience: int = PATIENCE,
        scale_floor: float = SCALE_FLOOR,
    ) -> Self:
        """Make a guard that continues with the state of another one. The limits are those of the new run.

        Args:
            state: The result of `state()`, possibly after a round trip through JSON.
            window: As for a new guard.
            spike: As for a new guard.
            patience: As for a new guard.
            scale_floor: As for a new guard.
        """
        guard = cls(window, spike, patience, scale_floor)
        guard._losses.extend(state["losses"])
        if state["typical"] is not None:
            median, deviation = state["typical"]
            guard._typical = (median, deviation)
        guard._above, guard._at_floor = list(state["above"]), list(state["at_floor"])
        return guard

    def _floor(self, step: int, loss: float, loss_scale: float | None) -> Divergence | None:
        is_at_floor = loss_scale is not None and loss_scale <= self._scale_floor
        self._at_floor = [*self._at_floor, step] if is_at_floor else []
        if len(self._at_floor) < self._patience:
            return None
        since = self._at_floor[0]
        self._above, self._at_floor = [], []
        message = (
            f"The loss scale was at its floor of {self._scale_floor:g} for {self._patience} steps up to step {step}: "
            "gradients overflow fp16 even without scaling."
        )
        return Divergence(step, since, "scale-floor", loss, message)

    def _high(self, step: int, loss: float) -> Divergence | None:
        if self._typical is None or loss <= self._limit(*self._typical):
            self._above = []
            self._remember(loss)
            return None
        self._above.append(step)
        if len(self._above) < self._patience:
            return None
        since = self._above[0]
        self._above = []
        message = (
            f"The loss is {loss:.3g} at step {step} and was far above its typical {self._typical[0]:.3g} "
            f"for {self._patience} losses in a row."
        )
        return Divergence(step, since, "spike", loss, message)

    def _limit(self, median: float, deviation: float) -> float:
        """The loss above which a loss counts as high: each bound alone would be wrong for some healthy training."""
        return max(median * self._spike, median + _DEVIATIONS * deviation, median + _LEAST_RISE)

    def _remember(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) < (self._window + 1) // 2:
            return
        median = statistics.median(self._losses)
        if self._typical is None or median <= self._typical[0]:
            spread = statistics.median(abs(other - median) for other in self._losses)
            self._typical = (median, spread * _MAD_TO_DEVIATION)

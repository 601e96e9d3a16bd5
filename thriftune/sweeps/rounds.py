"""The rounds of a sweep: the trials that are planned together, and what came of them so far."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from thriftune.config import RunConfig
from thriftune.planning.packing import PlannedPack
from thriftune.sweeps.outcomes import Outcome
from thriftune.training_plan import TrainingPlan

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that can be trained.

    Attributes:
        number: Its number, from 0.
        settings: What it sets, as JSON: values by key of the run file.
        run: Its run file, as JSON.
        plan: Its plan, on the node that it shares or has for itself.
        model_version: Present version of its base model.
        tokenizer_version: Fingerprint of its tokenizer.
        data_version: Present version of its data.
        benchmarks_version: Present versions of the benchmarks, as JSON; empty if there are none.
        start_version: Present version of the adapter that it continues; empty if there is none.
    """

    number: int
    settings: str
    run: str
    plan: TrainingPlan
    model_version: str = ""
    tokenizer_version: str = ""
    data_version: str = ""
    benchmarks_version: str = ""
    start_version: str = ""

    @property
    def config(self) -> RunConfig:
        """Its run."""
        return RunConfig.model_validate_json(self.run)

    @property
    def values(self) -> dict[str, Any]:
        """What it sets, by key of the run file."""
        found: dict[str, Any] = json.loads(self.settings)
        return found


@dataclass(frozen=True)
class LeftOut:
    """A drawn trial that cannot be trained.

    Attributes:
        number: Its number.
        settings: What it sets, as JSON.
        reason: Why it cannot, in one line.
    """

    number: int
    settings: str
    reason: str


@dataclass(frozen=True)
class PlannedRound:
    """Trials that are planned together.

    Attributes:
        trials: Those that are trained.
        packs: Those of them that share nodes; the others have nodes of their own.
        left_out: Those that cannot be trained.
        ended: Why no more trials are started; empty if they are.
        began: When the first round was planned, in seconds since 1970.
    """

    trials: list[PlannedTrial] = field(default_factory=list)
    packs: list[PlannedPack] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    ended: str = ""
    began: float = 0.0

    @property
    def alone(self) -> list[PlannedTrial]:
        """The trials with nodes of their own."""
        packed = {number for pack in self.packs for number in pack.numbers}
        return [trial for trial in self.trials if trial.number not in packed]

    def pack_of(self, number: int) -> PlannedPack | None:
        """The pack that a trial is in; None if it has a node of its own."""
        return next((pack for pack in self.packs if number in pack.numbers), None)


@dataclass(frozen=True)
class Tried:
    """A trial and what came of it.

    Attributes:
        trial: The trial.
        outcome: What came of it.
        score: What it is judged by; None if it has none.
    """

    trial: PlannedTrial
    outcome: Outcome
    score: float | None = None

    @property
    def cost(self) -> float:
        """What its devices cost; nothing for a trial that an earlier run had trained."""
        if self.outcome.is_served:
            return 0.0
        return self.trial.plan.price_per_hour * self.outcome.seconds / _SECONDS_PER_HOUR


@dataclass(frozen=True)
class SoFar:
    """What came of a sweep so far.

    Attributes:
        tried: The trials.
        left_out: Trials that could not be trained.
        is_higher_better: Whether a higher score is better.
        ended: Why no more trials were started; empty if all were.
        began: When the first round was planned, in seconds since 1970; 0 if none was.
    """

    tried: list[Tried] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    is_higher_better: bool = False
    ended: str = ""
    began: float = 0.0

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of the trials."""
        return [one.outcome for one in self.tried]

    @property
    def scores(self) -> dict[int, float]:
        """What each trial is judged by, by its number."""
        return {one.trial.number: one.score for one in self.tried if one.score is not None}

    @property
    def cost(self) -> float:
        """What all of it cost, as far as it was measured."""
        return sum(one.cost for one in self.tried)

    def with_round(self, planned: PlannedRound, tried: list[Tried]) -> "SoFar":
        """With what came of another round.

        Args:
            planned: The round.
            tried: Its trials, and what came of them.
        """
        left_out, ended = [*self.left_out, *planned.left_out], self.ended or planned.ended
        return replace(self, tried=[*self.tried, *tried], left_out=left_out, ended=ended, began=planned.began)

    def judged(self, scores: Mapping[int, float], *, is_higher_better: bool) -> "SoFar":
        """With what trials are judged by.

        Args:
            scores: By the number of the trial; the others keep what they have.
            is_higher_better: Whether a higher score is better.
        """
        tried = [replace(one, score=scores.get(one.trial.number, one.score)) for one in self.tried]
        return replace(self, tried=tried, is_higher_better=is_higher_better)

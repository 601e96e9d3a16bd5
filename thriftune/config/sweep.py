"""The file of a sweep: a run file with a section `sweep`, which says what its trials change."""

from typing import Any, Literal

from pydantic import Field, PositiveInt

from thriftune.config import rules, sweep_rules
from thriftune.config.data import Section
from thriftune.config.schema import RunConfig
from thriftune.errors import Problem

# The metric that a sweep is decided by unless it names another.
HELD_OUT_LOSS = "held_out_loss"


class RangeConfig(Section):
    """A range of numbers to draw from."""

    low: float = Field(description="Lowest value, which may be drawn.")
    high: float = Field(description="Highest value, which may be drawn.")
    log: bool = Field(default=False, description="Draw evenly over the logarithm, as for learning rates.")
    step: float | None = Field(default=None, gt=0, description="Distance between values; any value when left out.")


class BudgetConfig(Section):
    """What all trials together may take."""

    cost: float | None = Field(default=None, gt=0, description="In the catalogue's currency; no limit when left out.")
    hours: float | None = Field(default=None, gt=0, description="Hours from the first trial to the last.")


class HalvingConfig(Section):
    """Early stopping across trials by successive halving over their validations (optuna's pruner)."""

    first: PositiveInt = Field(default=1, description="Validations before the first decision.")
    factor: int = Field(default=3, ge=2, description="One trial of so many goes on at each decision.")


class SweepConfig(Section):
    """What the trials of a sweep change, and how many there are. One of overrides, grid and ranges is given."""

    overrides: tuple[dict[str, Any], ...] = Field(
        default=(), description="The trials one by one, each with what it changes: {training.learning_rate: 1e-4}."
    )
    grid: dict[str, tuple[Any, ...]] = Field(default={}, description="Values by key; every combination is a trial.")
    ranges: dict[str, RangeConfig | tuple[Any, ...]] = Field(
        default={}, description="What is drawn by key: a range of numbers, or a list of values to choose from."
    )
    sampler: Literal["random", "tpe"] = Field(
        default="random", description="How ranges are drawn; tpe learns from the trials before."
    )
    trials: PositiveInt | None = Field(
        default=None,
        description="Number of trials that are drawn from ranges. With overrides or grid: the most that there may be.",
    )
    parallel: PositiveInt | None = Field(
        default=None,
        description="Most trials at a time; as many as fit when left out. tpe learns after each such group.",
    )
    metric: str = Field(
        default=HELD_OUT_LOSS,
        description="What the best trial is best in: held_out_loss, or a metric of the run's benchmarks as "
        "task.metric.",
    )
    budget: BudgetConfig | None = Field(default=None, description="No limit when left out.")
    halving: HalvingConfig | None = Field(default=None, description="No trial is stopped early when left out.")
    allow: tuple[Literal["data", "model", "seed"], ...] = Field(
        default=(),
        description="What trials may differ in although it costs more: each other value of data (data.*, task, "
        "classification.*) or of seed prepares a dataset of its own, with other held-out rows, so that losses compare "
        "less well; each other model.* is fetched.",
    )

    @property
    def halving_json(self) -> str:
        """How trials are stopped early, as JSON; empty if they are not."""
        return self.halving.model_dump_json() if self.halving else ""

    @property
    def is_decided_by_loss(self) -> bool:
        """Whether the best trial is the one with the lowest held-out loss."""
        return self.metric == HELD_OUT_LOSS


class SweepRun(RunConfig):
    """A run file with a section `sweep`."""

    sweep: SweepConfig

    @property
    def as_run(self) -> RunConfig:
        """The run without its sweep, with the values that trials do not change."""
        return RunConfig.model_validate(self.model_dump(exclude={"sweep"}, exclude_unset=True))

    def problems(self) -> list[Problem]:
        """Every problem of the run and of its sweep; of the trials only if there is no other."""
        return [*rules.check(self), *sweep_rules.check(self)] or list(sweep_rules.of_trials(self))

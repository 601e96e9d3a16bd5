"""What the trials of a sweep set that are drawn from ranges, by optuna.

Nothing of optuna's is kept: the study is made again from what came of the trials before, with a seeded sampler, so that
a second start proposes exactly the same trials, and what they trained is found again.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.config.sweep import RangeConfig, SweepRun
from thriftune.config.trials import field_of, number_of_trials, numbers_of

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

# How often a trial is drawn again that is equal to an earlier one, before it is left out.
_TRIES = 50


@dataclass(frozen=True)
class Told:
    """What optuna is told of a trial.

    Attributes:
        score: What it is judged by; None if it has none.
        steps: Optimizer steps at its validations, if it was stopped early.
        losses: The held-out losses there.
    """

    score: float | None = None
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()


def propose(run: SweepRun, told: Mapping[int, Told], *, is_higher_better: bool = False) -> list[dict[str, Any]]:
    """What the next trials set.

    Args:
        run: The sweep, which has ranges.
        told: What came of the trials before, by their numbers: of all of them, or of none.
        is_higher_better: Whether a higher score is better.

    Returns:
        One mapping of keys to values for each trial: all trials of a random sweep, and as many as run in parallel of
        one that learns; fewer where the ranges hold no more, or where all are drawn.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep, direction = run.sweep, "maximize" if is_higher_better else "minimize"
    study = optuna.create_study(sampler=_sampler(run), direction=direction)
    spaces = {key: _space(key, drawn) for key, drawn in sweep.ranges.items()}
    wanted = number_of_trials(run)
    size = sweep.parallel or wanted if sweep.sampler == "tpe" else wanted
    drawn: list[dict[str, Any]] = []
    while True:
        asked, new = _ask(run, study, spaces, min(size, wanted - len(drawn)), drawn)
        first = len(drawn)
        drawn += new
        if first >= len(told) or not new:
            break
        for number, trial in enumerate(asked, start=first):
            _tell(study, trial, told.get(number, Told()), is_higher_better=is_higher_better)
    is_last = len(new) < min(size, wanted - first) or len(drawn) >= wanted
    if is_last and len(drawn) < (sweep.trials or 0):
        asked_for = "Of the ranges, no more than %d trials were drawn that differ: %d were asked for"
        logger.warning(asked_for, len(drawn), sweep.trials)
    return new


def _sampler(run: SweepRun) -> "optuna.samplers.BaseSampler":
    import optuna

    if run.sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=run.seed)
    # The other trials of a group count as bad until they are done, so that the group is not of one place.
    startup = max(run.sweep.parallel or 1, len(run.sweep.ranges) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of constant_liar
        return optuna.samplers.TPESampler(seed=run.seed, constant_liar=True, n_startup_trials=startup)


def _space(key: str, drawn: RangeConfig | tuple[Any, ...]) -> "optuna.distributions.BaseDistribution":
    import optuna

    if isinstance(drawn, tuple):  # by their numbers: optuna keeps no lists
        return optuna.distributions.CategoricalDistribution(tuple(range(len(drawn))))
    field = field_of(key)
    assert field is not None
    if numbers_of(field) is int:
        step = int(drawn.step or 1)
        return optuna.distributions.IntDistribution(int(drawn.low), int(drawn.high), log=drawn.log, step=step)
    return optuna.distributions.FloatDistribution(drawn.low, drawn.high, log=drawn.log, step=drawn.step)


def _ask(
    run: SweepRun,
    study: "optuna.Study",
    spaces: Mapping[str, "optuna.distributions.BaseDistribution"],
    count: int,
    before: Sequence[Mapping[str, Any]],
) -> tuple[list["optuna.Trial"], list[dict[str, Any]]]:
    """Draw trials that differ from each other and from those before."""
    import optuna

    asked: list[optuna.Trial] = []
    settings: list[dict[str, Any]] = []
    seen = {json.dumps(one, sort_keys=True) for one in before}
    for _ in range(count):
        for _ in range(_TRIES):
            trial = study.ask(dict(spaces))
            values = {key: _value(run.sweep.ranges[key], drawn) for key, drawn in trial.params.items()}
            text = json.dumps(values, sort_keys=True)
            if text not in seen:
                seen.add(text)
                asked.append(trial)
                settings.append(values)
                break
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return asked, settings


def _value(drawn: RangeConfig | tuple[Any, ...], value: Any) -> Any:
    return drawn[value] if isinstance(drawn, tuple) else value


def _tell(study: "optuna.Study", trial: "optuna.Trial", told: Told, *, is_higher_better: bool) -> None:
    import optuna

    for step, loss in zip(told.steps, told.losses, strict=True):
        trial.report(-loss if is_higher_better else loss, step)  # a loss is better lower, whatever the metric is
    if told.score is not None:
        study.tell(trial, told.score)
    else:
        state = optuna.trial.TrialState.PRUNED if told.losses else optuna.trial.TrialState.FAIL
        study.tell(trial, state=state)

"""Early stopping across trials: successive halving over their validations, as optuna's pruner decides it.

Each trial is decided about when it has measured, by what the others have measured until then; nobody waits for the
slower ones (ASHA). So the first trial at each rung goes on, and a later one goes on if it is in the best part of those
that were there. The trials of a pack are compared with each other, and with those that ended before the pack began.

Source: https://arxiv.org/abs/1810.05934; optuna.pruners.SuccessiveHalvingPruner
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from thriftune.config.sweep import HalvingConfig
from thriftune.sweeps.outcomes import Outcome

if TYPE_CHECKING:
    from optuna import Trial


class Halving:
    """Decides after each validation whether a trial goes on.

    Args:
        config: When it decides, and how many go on.
        earlier: What came of the trials that ended before, which the present ones are compared with.
    """

    def __init__(self, config: HalvingConfig, earlier: Iterable[Outcome] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it says at INFO that it made a study
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=config.first, reduction_factor=config.factor)
        # The sampler is asked for nothing.
        self._study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
        self._trials: dict[int, Trial] = {}
        self._seen: dict[int, int] = {}
        self._stopped: set[int] = set()
        for outcome in sorted(earlier, key=lambda outcome: outcome.number):
            self.goes_on(outcome.number, losses_of(outcome))

    def goes_on(self, number: int, losses: Sequence[float]) -> bool:
        """Whether a trial goes on. Once stopped, it stays so.

        Args:
            number: Number of the trial.
            losses: The held-out loss at each of its validations after the first step, in their order; those that were
                told before again.
        """
        if number not in self._trials:
            self._trials[number] = self._study.ask()
        trial, seen = self._trials[number], self._seen.get(number, 0)
        for count, loss in enumerate(losses[seen:], start=seen + 1):
            trial.report(loss, count)
            # Asked even if it is stopped by now: it counts for the others how far it came.
            if trial.should_prune():
                self._stopped.add(number)
        self._seen[number] = max(seen, len(losses))
        return number not in self._stopped


def losses_of(outcome: Outcome) -> list[float]:
    """The held-out losses of a trial that has ended, without that before its first step.

    Args:
        outcome: What came of it.
    """
    if outcome.training is not None:
        return [validation.loss for validation in outcome.training.validations if validation.step > 0]
    return list(outcome.losses)

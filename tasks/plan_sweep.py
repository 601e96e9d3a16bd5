"""Plan the next trials of a sweep: each of them, which of them share nodes, and what all of it should take."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flytekit import task

from tasks import ledger, pages, preflight, settings
from tasks.declaring import cpu_task, hub_secrets, wandb_secrets
from tasks.plan import Surroundings, is_for_this_machine, surroundings
from tasks.training_body import start_version
from tasks.transfer import transient_errors_retried
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.config.sweep import HalvingConfig, SweepRun
from thriftune.config.sweep_rules import validations_before_end
from thriftune.config.trials import number_of_trials, trial_of, written
from thriftune.errors import ConfigError, Problem, UserError
from thriftune.planning import matching, offers, packing
from thriftune.planning.offers import Offer
from thriftune.planning.packing import PlannedPack
from thriftune.planning.time.run import Size
from thriftune.preflight import platform, sizing
from thriftune.preflight.findings import Facts, PreflightError
from thriftune.sweeps import cost, plan_report
from thriftune.sweeps.rounds import LeftOut, PlannedRound, PlannedTrial, SoFar
from thriftune.sweeps.trials import next_trials, round_size, rounds_after
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.plan_sweep")

_SECONDS_PER_HOUR = 3600
_NOT_COMPARABLE = (
    "The models of the trials have different tokenizers. A held-out loss is a mean over tokens, so that theirs do not "
    "compare, and the best may not be the best: name a metric of benchmarks in sweep.metric."
)


@task(**cpu_task(None, *hub_secrets(), *wandb_secrets()), enable_deck=True, deck_fields=())
def plan_round(config: SweepRun, before: SoFar) -> PlannedRound:
    """Plan and check the next trials, and refuse what cannot be before any of them starts.

    Args:
        config: The sweep.
        before: What came of the rounds before; nothing yet for the first.

    Returns:
        The trials that can be trained, those that share nodes, and those that are left out.

    Raises:
        ConfigError: A trial that the file names cannot be trained, no drawn one can, or all of them are expected to
            take more than the budget.
    """
    began = before.began or time.time()
    currency = next((one.trial.plan.currency for one in before.tried), "")
    hours = (time.time() - began) / _SECONDS_PER_HOUR
    ended = before.ended or cost.spent(config.sweep.budget, before.cost, hours, currency)
    if ended:
        logger.warning("No more trials are started: %s. What was trained is compared.", ended)
        return PlannedRound(ended=ended, began=began)
    trials = next_trials(config, before)
    if not trials:
        return PlannedRound(began=began)
    with transient_errors_retried():
        is_last = rounds_after(config, before) == 1 or len(trials) < round_size(config)  # the ranges gave no more
        must_have_one = not before.tried and is_last
        planned = replace(_Planning(config).round_of(trials, must_have_one=must_have_one), began=began)
    return _within_budget(config, planned, before, hours) if planned.trials else planned


def _within_budget(config: SweepRun, planned: PlannedRound, before: SoFar, hours: float) -> PlannedRound:
    """Log the plan, show it on a page, and hold it to the budget: a first round is refused, a later one ends the sweep.

    Args:
        config: The sweep.
        planned: The round, with at least one trial.
        before: What came of the rounds before.
        hours: Hours since the first.

    Raises:
        ConfigError: All trials are expected to take more than the budget.
    """
    budget, is_first = config.sweep.budget, not before.tried
    now, currency = cost.expected(planned, config.sweep.parallel), planned.trials[0].plan.currency
    left_out = len(before.left_out) + len(planned.left_out)
    count, rounds = number_of_trials(config) - left_out, rounds_after(config, before)
    whole = now.times(count, rounds) if now and is_first else now
    logger.info("\n%s", plan_report.plan_text(planned, config.name, whole, currency))
    pages.show("plan", config.name, plan_report.plan_page(planned, config.name, whole, currency))
    tokenizers = {one.tokenizer_version for one in (*planned.trials, *(done.trial for done in before.tried))}
    if config.sweep.is_decided_by_loss and len(tokenizers) > 1:
        logger.warning("%s", _NOT_COMPARABLE)
    if config.sweep.halving:
        _say_whom_halving_spares(config.sweep.halving, planned)
    if is_first:
        cost.require_within(budget, whole, currency)
    elif now and (ended := cost.beyond(budget, before.cost + now.cost, hours + now.hours, currency)):
        logger.warning("No more trials are started: %s. What was trained is compared.", ended)
        return replace(planned, trials=[], packs=[], ended=ended)
    return planned


def _say_whom_halving_spares(halving: HalvingConfig, planned: PlannedRound) -> None:
    alone = [trial.number for trial in planned.alone]
    if alone:
        logger.warning("Halving stops no trial with a node of its own: %s train to their end", alone)
    few = []
    for trial in planned.trials:
        steps = trial.plan.time.steps if trial.plan.time else 0
        count = validations_before_end(steps or None, trial.config.evaluation.every_steps)
        if trial.number not in alone and count is not None and count < halving.first:
            few.append(trial.number)
    if few:
        logger.warning("Halving stops no trial before %d validations, and %s have fewer", halving.first, few)


@dataclass
class _Planning:
    """The planning of one round. What several trials have in common is looked at once.

    Attributes:
        sweep: The sweep.
        there: The machines, and what calibrations took. Other records do not count: a sweep that is started again must
            find the plans, and with them the trainings, of its first start.
        sizes: Rows by what decides them.
        checked: What the preflight found, or refused, by what decides it.
    """

    sweep: SweepRun
    there: Surroundings = field(init=False)
    sizes: dict[str, Size | None] = field(default_factory=dict)
    checked: dict[str, Facts | UserError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        calibrations = [record for record in ledger.records() if record.trial]
        self.there = surroundings(calibrations, on_this_machine=is_for_this_machine(self.sweep.as_run))

    def round_of(self, trials: Mapping[int, Mapping[str, Any]], *, must_have_one: bool) -> PlannedRound:
        """Plan trials, check them, and pack those that share nodes.

        Args:
            trials: What each sets, by its number.
            must_have_one: Whether it is an error that none of them can be trained, although they were drawn.

        Raises:
            ConfigError: As `plan_round` says.
        """
        planned: list[PlannedTrial] = []
        refused: dict[int, UserError] = {}
        for number, values in trials.items():
            try:
                planned.append(self._planned(number, values))
            except UserError as error:
                refused[number] = error
        if refused and (not self.sweep.sweep.ranges or (must_have_one and not planned)):
            raise ConfigError.of("plan-does-not-fit", [_problem(n, trials[n], error) for n, error in refused.items()])
        left_out = [LeftOut(n, json.dumps(trials[n]), _reason(error)) for n, error in refused.items()]
        for one in left_out:
            logger.warning("Trial %d (%s) is left out: %s", one.number, written(trials[one.number]), one.reason)
        small = [trial for trial in planned if packing.is_packed(trial.plan)]
        packs = self._packs(small, packing.share_of(self.sweep.sweep.parallel, len(small), max(1, len(planned))))
        by_number = {number: pack for pack in packs for number in pack.numbers}
        placed = [_placed(trial, by_number.get(trial.number)) for trial in planned]
        return PlannedRound(placed, packs, left_out)

    def _planned(self, number: int, values: Mapping[str, Any]) -> PlannedTrial:
        config = trial_of(self.sweep, number, values).config
        plan = self._plan(config)
        facts = self._facts(config, plan)
        return PlannedTrial(
            number,
            json.dumps(values),
            config.model_dump_json(),
            plan,
            facts.model_version,
            facts.tokenizer_version,
            facts.data_version,
            facts.benchmarks_version,
            start_version(config),
        )

    def _plan(self, config: RunConfig) -> TrainingPlan:
        """Plan a trial for one device if it surely fits that, and else for one node."""
        size = self._size(config)
        if config.hardware.devices_per_node in (None, 1):
            try:
                plan = self.there.plan(_on(config, nodes=1, devices_per_node=1), size)
            except UserError:
                pass  # it says what else does not fit below
            else:
                if not list(platform.check_certain(config, plan)):
                    return plan
        plan = self.there.plan(_on(config, nodes=1), size)
        if problems := list(platform.check_certain(config, plan)):
            raise ConfigError(problems)
        return plan

    def _size(self, config: RunConfig) -> Size | None:
        key = _key(config)
        if key not in self.sizes:
            self.sizes[key] = sizing.size_of(config, settings.hub_token())
        return self.sizes[key]

    def _facts(self, config: RunConfig, plan: TrainingPlan) -> Facts:
        """What the preflight finds, once for what is equal.

        Raises:
            PreflightError: It refuses the trial.
        """
        key = json.dumps([_key(config), _what_trains(config)], default=str)
        if key not in self.checked:
            found = preflight.check(config.model_copy(update={"name": self.sweep.name}), plan)
            try:
                found.require_ok()
                self.checked[key] = found.facts
            except PreflightError as error:
                self.checked[key] = error
        known = self.checked[key]
        if isinstance(known, UserError):
            raise known
        return known

    def _packs(self, trials: Sequence[PlannedTrial], parallel: int | None) -> list[PlannedPack]:
        plans = {trial.number: trial.plan for trial in trials}
        bases = {trial.number: f"{trial.config.model.source} {trial.model_version}" for trial in trials}
        if self.there.here is not None:
            return packing.packed_here(plans, self.there.here, parallel, bases)
        machines: dict[str, list[Offer]] = {}
        for trial in trials:
            if trial.plan.device not in machines:
                found = matching.matching(trial.config, self.there.nodes)
                found = [offers.on_spot(offer) for offer in found] if settings.PLATFORM.interruptible else found
                machines[trial.plan.device] = [offer for offer in found if offer.device.name == trial.plan.device]
        return packing.packed(plans, machines, parallel, bases)


def _on(config: RunConfig, **hardware: int) -> RunConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=hardware)})


def _key(config: RunConfig) -> str:
    """What decides the rows of a run."""
    start = config.lora_or_default.resume_from
    decides = (config.method, config.model.model_dump(), config.data.model_dump(), config.seed, config.labels, start)
    return json.dumps(decides, default=str)


def _what_trains(config: RunConfig) -> dict[str, Any]:
    """What a preflight looks at besides rows and plan. The size of an adapter only matters where one is continued."""
    sections = {facts.section for facts in METHODS.values() if facts.section}
    sizes = {"lora": {"rank", "alpha", "dropout"}} if config.lora_or_default.resume_from is None else {}
    return config.model_dump(include=sections, exclude=sizes)


def _placed(trial: PlannedTrial, pack: PlannedPack | None) -> PlannedTrial:
    plan = replace(trial.plan, alternatives=[]) if pack is None else packing.on_pack(trial.plan, pack)
    return replace(trial, plan=plan)


def _reason(error: UserError) -> str:
    first = error.problems[0]
    return f"{first.field} = {first.value}: {first.message}" if first.value else f"{first.field}: {first.message}"


def _problem(number: int, values: Mapping[str, Any], error: UserError) -> Problem:
    """All that is wrong with a trial as one problem: the first, with the remedy of the last."""
    first, last = error.problems[0], error.problems[-1]
    which = f"trial {number} ({written(values)}): "
    message = f"{which}{first.message.removeprefix(which)}"  # the run of a trial says it itself
    if first is not last:
        message = f"{message} {last.message.removeprefix(which)}"
    return Problem(first.field, first.value, message, last.remedy)

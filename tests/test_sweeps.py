"""What a sweep tries, what it costs, which trial is the best, and how that is shown."""

import json
import math
from dataclasses import replace

import pytest
from html_page import Page
from test_packs import run_of
from test_results import TRAINED
from test_sweep_config import RANGE, RATES, sweep_of

from thriftune.config.sweep import BudgetConfig
from thriftune.config.trials import given_settings
from thriftune.errors import ConfigError
from thriftune.models import architecture
from thriftune.planning import catalogue, matching, packing
from thriftune.planning.planner import plan as plan_of
from thriftune.sweeps import cost, plan_report, report
from thriftune.sweeps.choosing import best_of
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.proposing import Told, propose
from thriftune.sweeps.rounds import LeftOut, PlannedRound, PlannedTrial, SoFar, Tried
from thriftune.sweeps.table import cells_of, headline, table_of, text_of
from thriftune.sweeps.trials import next_trials, number_of_rounds, round_size
from thriftune.training.result import Validation

SPACE = {**RANGE, "lora.rank": [4, 8, 16], "lora.dropout": {"low": 0.0, "high": 0.1}}


def outcome(number: int, status: str = "stopped", losses: tuple[float, ...] = (3.0, 2.0), **values) -> Outcome:
    return Outcome(number, status, steps=tuple(range(1, len(losses) + 1)), losses=losses, seconds=1800.0, **values)


@pytest.fixture(scope="module")
def plan():
    config = run_of(instance="g4dn.metal", devices_per_node=1)
    return plan_of(config, catalogue.load(), architecture=architecture.of(config.model))


@pytest.fixture(scope="module")
def planned(plan):
    """Eight trials that share a node with eight GPUs."""
    metal = {"T4": matching.matching(run_of(instance="g4dn.metal"), catalogue.load())}
    packs = packing.packed(dict.fromkeys(range(8), plan), metal, None)
    rates = [json.dumps({"training.learning_rate": rate / 1e4}) for rate in range(1, 9)]
    trials = [PlannedTrial(n, rates[n], "{}", packing.on_pack(plan, packs[0])) for n in range(8)]
    return PlannedRound(trials, packs)


def tried(planned, *outcomes: Outcome, scores: dict[int, float] | None = None) -> SoFar:
    own = [Tried(planned.trials[one.number], one, (scores or {}).get(one.number)) for one in outcomes]
    return SoFar().with_round(planned, own)


def test_a_random_sweep_proposes_all_its_trials_and_always_the_same():
    run = sweep_of({"ranges": SPACE, "trials": 6})
    first = propose(run, {})
    assert len(first) == 6
    assert len({json.dumps(one) for one in first}) == 6
    assert propose(run, {}) == first
    assert propose(sweep_of({"ranges": SPACE, "trials": 6}, seed=1), {}) != first
    assert all(1e-5 <= one["training.learning_rate"] <= 1e-3 and one["lora.rank"] in (4, 8, 16) for one in first)


def test_tpe_proposes_the_same_after_the_same_outcomes_and_others_after_others():
    run = sweep_of({"ranges": SPACE, "trials": 20, "sampler": "tpe", "parallel": 5})
    first = propose(run, {})
    assert len(first) == 5
    good = {n: Told(float(n)) for n in range(5)}
    second = propose(run, good)
    assert len(second) == 5
    assert propose(run, dict(good)) == second
    third = propose(run, good | {n: Told(float(n)) for n in range(5, 10)})
    assert not [one for one in third if one in [*first, *second]]
    assert propose(run, {n: Told(float(-n)) for n in range(5)}) != second
    assert propose(run, {n: Told() for n in range(5)}), "trials that failed are told too"
    assert propose(run, {n: Told(float(n)) for n in range(20)}) == []


def test_a_stopped_trial_with_a_lower_loss_is_better_whatever_the_metric():
    """optuna reads what a stopped trial reported in the direction of the study, and a loss is no accuracy."""
    run = sweep_of({"ranges": RANGE, "trials": 40, "sampler": "tpe", "parallel": 8})
    settings: list[float] = []
    for _ in range(5):
        told = {n: Told(None, (1,), (-math.log(rate),)) for n, rate in enumerate(settings)}
        settings += [one["training.learning_rate"] for one in propose(run, told, is_higher_better=True)]
    assert sum(math.log(rate) for rate in settings[-8:]) > sum(math.log(rate) for rate in settings[:8]) + 4


def test_tpe_comes_nearer_to_what_is_good():
    """Of the last trials more have a high rate, which is what the score asks for, than of the first."""
    run = sweep_of({"ranges": RANGE, "trials": 40, "sampler": "tpe", "parallel": 8})
    settings: list[float] = []
    for _ in range(5):
        told = {n: Told(-math.log(rate)) for n, rate in enumerate(settings)}
        settings += [one["training.learning_rate"] for one in propose(run, told)]
    assert len(settings) == 40
    assert sum(math.log(rate) for rate in settings[-8:]) > sum(math.log(rate) for rate in settings[:8]) + 4


def test_ranges_that_hold_less_give_less_and_that_is_said(caplog):
    run = sweep_of({"ranges": {"lora.rank": {"low": 4, "high": 8, "step": 2}}, "trials": 8})
    assert sorted(one["lora.rank"] for one in propose(run, {})) == [4, 6, 8]
    assert "no more than 3 trials were drawn that differ: 8 were asked for" in caplog.text


def test_lists_of_texts_can_be_chosen_from():
    modules = [["q_proj"], ["q_proj", "v_proj"]]
    run = sweep_of({"ranges": {"lora.target_modules": modules}, "trials": 2})
    assert sorted(one["lora.target_modules"] for one in propose(run, {})) == modules


@pytest.mark.parametrize(
    ("sweep", "rounds", "size"),
    [
        ({"grid": RATES}, 1, 3),
        ({"grid": RATES, "parallel": 2}, 1, 3),
        ({"grid": RATES, "parallel": 2, "budget": {"cost": 5}}, 2, 2),
        ({"ranges": RANGE, "trials": 7, "parallel": 3}, 1, 7),
        ({"ranges": {"lora.rank": {"low": 4, "high": 8}}, "trials": 9, "parallel": 2, "budget": {"cost": 5}}, 3, 2),
        ({"ranges": RANGE, "trials": 7, "parallel": 3, "sampler": "tpe"}, 3, 3),
        ({"ranges": RANGE, "trials": 7, "parallel": 3, "budget": {"hours": 5}}, 3, 3),
    ],
)
def test_there_are_rounds_where_something_is_decided_between_them(sweep, rounds, size):
    run = sweep_of(sweep)
    assert (number_of_rounds(run), round_size(run)) == (rounds, size)


def test_the_rounds_of_a_grid_are_its_trials_in_order(planned):
    run = sweep_of({"grid": RATES, "parallel": 2, "budget": {"cost": 5}})
    first = next_trials(run, SoFar())
    assert list(first) == [0, 1]
    second = next_trials(run, tried(planned, outcome(0), outcome(1)))
    assert [*first.values(), *second.values()] == given_settings(run)
    assert list(second) == [2]


def test_the_best_is_never_one_that_failed_was_stopped_or_has_no_number():
    done = [outcome(n, "trained") for n in range(4)]
    assert best_of(done, {0: 2.0, 1: 1.0, 2: math.nan, 3: 1.0}) == 1, "of equal ones the first"
    assert best_of(done, {0: 2.0, 1: 1.0}, is_higher_better=True) == 0
    assert best_of([outcome(0, "failed"), outcome(1, "stopped")], {0: 0.1, 1: 0.1}) is None
    assert best_of(done, {2: math.nan, 3: -math.inf}) is None


def test_a_pack_costs_its_node_until_the_longest_is_done(planned, plan):
    hours = plan.time.hours
    found = cost.expected(planned, None)
    assert (found.trials, found.hours) == (8, pytest.approx(hours))
    assert found.cost == pytest.approx(7.824 * hours)
    slower = [replace(pack, slots=4) for pack in planned.packs]
    assert cost.expected(replace(planned, packs=slower), None).hours == pytest.approx(2 * hours)
    own = cost.expected(replace(planned, packs=[]), 3)
    assert own.hours == pytest.approx(3 * hours), "eight, three at a time"
    whole = found.times(20, 3)
    assert (whole.trials, whole.hours) == (20, pytest.approx(3 * hours)), "two full rounds, and a third that is not"
    assert whole.cost == pytest.approx(2.5 * found.cost)
    unknown = replace(planned.trials[0], plan=replace(plan, time=None))
    assert cost.expected(replace(planned, trials=[unknown]), None) is None


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"cost": 20}, r"sweep\.budget\.cost = 20: 8 trials are expected to cost 76\.26 USD\. Try at most 2 trials"),
        ({"cost": 1}, r"sweep\.budget\.cost = 1: .* USD\. Shorten the trials"),
        ({"hours": 2}, r"sweep\.budget\.hours = 2: 8 trials are expected to take 9\.7 hours\. Shorten the trials"),
    ],
)
def test_a_sweep_beyond_its_budget_is_refused_with_the_number(planned, budget, said):
    with pytest.raises(ConfigError, match=said) as caught:
        cost.require_within(BudgetConfig(**budget), cost.expected(planned, None), "USD")
    assert len(caught.value.problems) == 1
    cost.require_within(BudgetConfig(cost=1000, hours=100), cost.expected(planned, None), "USD")
    cost.require_within(None, None, "USD")


def test_hours_are_saved_by_fewer_rounds_and_not_by_fewer_trials_at_the_same_time(planned):
    """Eight trials of 9.7 hours at the same time in 2 hours: at most 1 trial, it said, which takes 9.7 hours too."""
    whole = cost.expected(planned, None).times(24, 3)
    with pytest.raises(ConfigError, match=r"24 trials are expected to take .* Try at most 16 trials"):
        cost.require_within(BudgetConfig(hours=20), whole, "USD")


def test_a_budget_that_nothing_can_be_said_of_is_refused():
    with pytest.raises(ConfigError, match=r"sweep\.budget = given: cannot be kept to"):
        cost.require_within(BudgetConfig(cost=1), None, "USD")


def test_what_is_spent_is_the_time_of_trials_that_this_sweep_trained(planned):
    found = tried(planned, outcome(0), outcome(1), replace(outcome(2), is_served=True))
    assert found.cost == pytest.approx(2 * 0.5 * 7.824 / 8)
    assert cost.spent(BudgetConfig(cost=0.9), found.cost, 0.0, "USD") == "0.98 of 0.90 USD are spent"
    assert cost.spent(BudgetConfig(cost=2), found.cost, 99.0, "USD") == ""
    assert cost.spent(BudgetConfig(hours=2), found.cost, 3.0, "USD") == "3.0 hours of 2.0 hours are over"
    assert cost.spent(None, 1e9, 1e9, "USD") == ""


@pytest.fixture
def found(planned):
    """One that trained, one that was stopped, one that failed, one that was served, and one that was left out."""
    training = replace(TRAINED, validations=[Validation(0, 0.0, 2.0), Validation(2, 9.0, 1.0)])
    done = [outcome(0, "trained", (), model="/m/0", training=training), outcome(1)]
    done += [outcome(2, "failed", (), error="diverged: <b>"), replace(outcome(3, "trained"), is_served=True)]
    so_far = tried(planned, *done, scores={0: 1.0, 3: 1.7})
    return replace(so_far, left_out=[LeftOut(4, '{"training.learning_rate": 7.0}', "rank is too high")])


def test_the_table_has_each_trial_with_what_came_of_it(found):
    table = table_of(sweep_of({"grid": RATES}), found)
    assert table.best == 0
    assert [row.status for row in table.rows] == ["trained", "stopped", "failed", "trained", "left out"]
    header, cells = cells_of(table)
    assert header[:2] == ["trial", "training.learning_rate"]
    assert cells[0][-6:] == ["2.0000", "1.0000", "trained", "30 min", "0.49 USD", "best"]
    assert cells[1][-5:] == ["2.0000", "stopped", "30 min", "0.49 USD", ""]
    assert cells[2][-1] == "diverged: <b>"
    assert cells[3][-4:] == ["trained before", "30 min", "", ""]
    assert cells[4][-1] == "rank is too high"
    assert "2 of 5 trials trained, 1 of them by an earlier run; the best is trial 0 by held_out_loss" in headline(table)
    text = text_of(table)
    assert "rank is too high" in text
    assert max(map(len, text.splitlines())) <= 160
    content = json.loads(table.as_json())
    assert [row["number"] for row in content["rows"]] == [0, 1, 2, 3, 4]


def test_costs_are_a_column_only_where_there_are_any(found):
    rows = [replace(row, cost=0.0) for row in table_of(sweep_of({"grid": RATES}), found).rows]
    header, cells = cells_of(replace(table_of(sweep_of({"grid": RATES}), found), rows=rows))
    assert header[-3:] == ["status", "time", ""]
    assert cells[0][-3:] == ["trained", "30 min", "best"]
    assert {len(row) for row in cells} == {len(header)}


def test_numbers_that_are_not_finite_are_none_in_the_file(planned):
    found = tried(planned, outcome(0, "failed", (3.0, math.nan)))
    table = table_of(sweep_of({"grid": RATES}), found)
    assert json.loads(table.as_json())["rows"][0]["after"] is None
    assert table.best is None
    assert "none can be the best" in headline(table)


def test_the_page_has_a_curve_for_each_trial_and_marks_the_best(found):
    table = table_of(sweep_of({"grid": RATES}), found)
    page = report.page_of(table, found)
    Page(page).assert_inert()
    assert page.count('<path class="trial-') == 2
    assert page.count('<path class="best"') == 1
    assert "trial 0, the best" in page
    assert "diverged: &lt;b&gt;" in page, "what others wrote is escaped"


@pytest.mark.parametrize(("trials", "legend"), [(1, 1), (9, 9), (10, 2), (200, 2)])
def test_more_curves_than_can_be_told_apart_are_of_one_colour_beside_the_best(planned, trials, legend):
    """Two hundred names for eight colours were a screen of legend that named no curve."""
    done = [outcome(number, "trained") for number in range(trials)]
    chart = report.chart_of(done, best=trials - 1)
    said = report.legend_of(report.classes_of(range(trials), trials - 1))
    assert len(chart.lines) == trials
    assert len(said) == legend
    assert said[-1] == (f"trial {trials - 1}, the best", "best")
    assert {drawn_as for drawn_as, _ in chart.lines} == {drawn_as for _, drawn_as in said}
    assert ("the other trials", "other") in said or legend == trials


def test_why_a_trial_failed_has_a_row_of_its_own(found):
    """At the end of a wide table it was out of sight, one word to a line."""
    page = report.page_of(table_of(sweep_of({"grid": RATES}), found), found)
    assert '<tr class="why"><td></td><td colspan="6">diverged: &lt;b&gt;</td></tr>' in page
    assert page.count('class="why"') == 2
    assert "<td>0, best</td>" in page


def test_curves_that_are_not_finite_are_marked():
    chart = report.chart_of([outcome(0, losses=(2.0, math.nan)), outcome(1, losses=(2.0, 1.0))], best=1)
    assert chart.bad == [1.0]
    assert [name for name, _ in chart.lines] == ["trial-0 point", "best"], "one validation is a dot"
    assert report.chart_of([outcome(0, losses=())], best=None) is None


def test_the_plan_names_node_time_and_cost_of_each_trial(planned):
    left = replace(planned, left_out=[LeftOut(9, '{"lora.rank": 4096}', "nothing fits")])
    whole = cost.expected(planned, None)
    text = plan_report.plan_text(left, "many", whole, "USD")
    assert "many: 8 trials now, on 1 node; 1 trial left out; 8 trials in all, about" in text
    assert "g4dn.metal, shared" in text
    assert "left out: nothing fits" in text
    page = plan_report.plan_page(left, "many", None, "USD")
    Page(page).assert_inert()
    assert "what they take is not known" in page

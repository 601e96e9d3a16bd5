"""What spot nodes cost: formulas agree with runs that are interrupted at random, and what cannot finish is refused."""

import math
import random
from dataclasses import replace

import pytest

from thriftune.errors import ConfigError
from thriftune.planning.spot import SpotRun, best_interval, expected, rate_of

RUN = SpotRun(hours=20.3, rate=0.15, startup_hours=0.3, interval_hours=0.5, checkpoint_hours=0.03)
RUNS = {
    "as planned": RUN,
    "no interruptions": replace(RUN, rate=0.0),
    "many": replace(RUN, rate=0.9),
    "long intervals": replace(RUN, interval_hours=6.0),
    "one interval": replace(RUN, interval_hours=100.0, rate=0.05),
    "long starts": replace(RUN, startup_hours=2.0, rate=0.3),
    "noticed": replace(RUN, noticed=1.0, rate=0.6, interval_hours=4.0, checkpoint_hours=0.1),
    "mostly noticed": replace(RUN, noticed=0.7, rate=0.5, interval_hours=2.0, waiting_hours=0.2),
}


def simulated(run, chance):
    """Billed hours, hours and interruptions of one run, with what happens in its order."""
    billed = waited = done = 0.0
    interruptions, is_started = 0, False
    waited += run.waiting_hours
    while done < run.hours:
        training = min(run.interval_hours - done % run.interval_hours, run.hours - done)
        if training < 1e-9:
            training = min(run.interval_hours, run.hours - done)
        piece = training + run.checkpoint_hours if is_started else run.startup_hours
        until = chance.expovariate(run.rate) if run.rate else math.inf
        if until >= piece:
            billed += piece
            done += training if is_started else 0.0
            is_started = True
            continue
        billed += until
        interruptions += 1
        waited += run.waiting_hours
        if is_started and chance.random() < run.noticed:  # saved before the node is gone
            billed += run.checkpoint_hours
            done += min(until, training)
        is_started = False
    return billed, billed + waited, interruptions


@pytest.mark.parametrize("name", RUNS)
def test_the_formula_agrees_with_runs_that_are_interrupted_at_random(name):
    run, chance = RUNS[name], random.Random(17)
    runs = [simulated(run, chance) for _ in range(1500)]
    billed, hours, interruptions = (sum(values) / len(runs) for values in zip(*runs, strict=True))
    found = expected(run, 2.0)
    assert found.billed_hours == pytest.approx(billed, rel=0.05)
    assert found.hours == pytest.approx(hours, rel=0.05)
    assert found.interruptions == pytest.approx(interruptions, rel=0.05)
    assert found.cost == 2.0 * found.billed_hours


@pytest.mark.parametrize("name", sorted(RUNS.keys() - {"no interruptions", "noticed"}))
def test_the_best_interval_costs_least(name):
    run = replace(RUNS[name], hours=480.0)
    best = best_interval(run)
    least = expected(replace(run, interval_hours=best), 1.0).cost
    others = [
        expected(replace(run, interval_hours=best * share), 1.0).cost for share in (0.5, 0.8, 0.95, 1.05, 1.2, 2.0)
    ]
    assert least <= 1.0005 * min(others)
    assert others[0] > least < others[-1]


def test_who_is_never_surprised_needs_no_checkpoints():
    assert best_interval(replace(RUN, rate=0.0)) == RUN.hours
    assert best_interval(replace(RUN, noticed=1.0)) == RUN.hours


def test_a_run_that_would_hardly_ever_finish_is_refused_with_the_arithmetic():
    run = replace(RUN, rate=2.0, interval_hours=3.0)
    with pytest.raises(ConfigError) as caught:
        expected(run, 1.0)
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("checkpoints.every_minutes", "180")
    for part in ("every 0.50 h", "0.30 h of starting + 3.00 h of training + 0.03 h of saving = 3.33 h", "0.1% of"):
        assert part in problem.message
    minutes = 60 * best_interval(run)
    assert f"save every {minutes:.0f} minutes" in problem.remedy
    assert expected(replace(run, interval_hours=minutes / 60), 1.0).billed_hours < 5 * run.hours


def test_where_no_interval_helps_none_is_proposed():
    for run in (replace(RUN, startup_hours=5.0, rate=2.0), replace(RUN, rate=1e6)):
        with pytest.raises(ConfigError) as caught:
            expected(run, 1.0)
        (problem,) = caught.value.problems
        assert "minutes" not in problem.remedy
        assert "THRIFTUNE_INTERRUPTIBLE=false" in problem.remedy


def test_interruptions_per_month_are_those_of_all_nodes_per_hour():
    assert rate_of(0.2) == 0.2 / 730
    assert rate_of(0.2, 8) == pytest.approx(8 * rate_of(0.2))
    assert rate_of(0.0) == 0


@pytest.mark.parametrize(
    "wrong", [{"hours": 0}, {"rate": -1}, {"interval_hours": 0}, {"startup_hours": math.nan}, {"noticed": 1.1}]
)
def test_figures_that_no_run_has_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(RUN, **wrong)

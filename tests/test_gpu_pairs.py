"""benchmarks/gpu_pairs.py has not run on a GPU yet: what it decides is looked at without one."""

import importlib
from pathlib import Path

import pytest
from planning import TINY

from thriftune.config import RunConfig
from thriftune.config.choices import METHODS, STRATEGIES
from thriftune.planning import catalogue, planner

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return list(importlib.import_module("gpu_pairs").runs())


def test_every_pair_that_the_tables_allow_is_trained(runs):
    pairs = {(run.method, "zero" if run.strategy.startswith("zero") else run.strategy) for run in runs}
    assert pairs == {(m, name) for name, facts in STRATEGIES.items() for m in METHODS if m not in facts.refuses}


def test_every_run_is_planned_for_one_t4_in_fp16(runs):
    content_for_t4 = importlib.import_module("gpu_runs").content_for_t4
    for run in runs:
        content = content_for_t4(run, 12, None)
        plan = planner.plan(RunConfig.model_validate(content), catalogue.load(), architecture=TINY)
        assert (plan.method, plan.precision, plan.devices_per_node) == (run.method, "fp16", 1), run.name
        assert STRATEGIES[plan.strategy] in (STRATEGIES.get(run.strategy), STRATEGIES["zero"]), run.name

"""GPU-hours of a training and of all runs of a name: what is used, and what of it is lost to faults and to waiting."""

import runpy
from pathlib import Path

import pytest
from conftest import run_dict
from planning import planned
from told import START, attempt, steps, timed, told

from thriftune.config import RunConfig
from thriftune.gpu_hours import GpuHours
from thriftune.planning import ledger
from thriftune.planning.ledger import Quantities, Record, Setup
from thriftune.planning.ledger.record import now
from thriftune.training.attempts_made import attempts_of, gpu_hours, hours_of

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_hours.py"


def hours(seconds):
    return pytest.approx(4 * seconds / 3600)


def test_hours_of_a_training_without_faults_are_used_or_waited():
    lines = [*attempt(0), *steps(1, 100, 101), *told((210, "finished", 100, {}))]
    found = gpu_hours(attempts_of(lines), waiting=0.25, planned=1.0)
    assert found.used == hours(210)
    assert (found.faults, found.between) == (0.0, 0.0)
    assert (found.starting, found.layers) == (hours(100), hours(0.25 * 110))
    assert found.working == pytest.approx(found.used - found.starting - found.layers)


def test_work_that_is_done_again_and_attempts_that_left_nothing_are_lost_to_faults():
    """Killed at step 50 with a checkpoint of step 30; then once while loading; then done, 60 s later each."""
    lines = [
        *attempt(0), *steps(1, 30, 101), *told((130.5, "saved", 30, {})), *steps(31, 50, 131),
        *attempt(210)[:2],
        *attempt(310, resumed=30), *steps(31, 100, 411), *told((480, "finished", 100, {})),
    ]  # fmt: skip
    found = gpu_hours(attempts_of(lines))
    assert found.used == hours(150 + 40 + 170)
    assert found.faults == hours(20 + 40), "20 steps again, and all of the second attempt"
    assert found.between == hours(60 + 60)
    assert found.starting == hours(100 + 100)


def test_a_restart_in_the_same_task_holds_its_devices_and_is_lost():
    lines = [
        *attempt(0), *steps(1, 30, 101), *told((130.5, "saved", 30, {})), *steps(31, 40, 131),
        *told((160, "loading", 0, {}), (200, "training", 30, {})), *steps(31, 100, 201),
        *told((271, "finished", 100, {})),
    ]  # fmt: skip
    found = gpu_hours(attempts_of(lines))
    assert (found.used, found.between) == (hours(271), 0.0)
    assert found.faults == hours(160 - 130)


def test_hours_that_go_on_are_those_until_now():
    plan = timed(planned(RunConfig.model_validate(run_dict("full"))))
    lines = [*attempt(0), *steps(1, 10, 101)]
    found = hours_of(plan, lines, START + 200)
    assert (found.used, found.faults) == (hours(200), 0.0)
    assert found.planned == hours(100 * 2.0 + 100), "100 steps, as counted, of 2 s"
    assert hours_of(plan, []) is None
    ended = hours_of(plan, [*lines, *told((110, "failed", 0, {}))], START + 200)
    assert (ended.used, ended.faults) == (hours(110), hours(110)), "without a checkpoint, nothing is left of it"


def test_hours_of_several_runs_add_up():
    one, other = GpuHours(4.0, 1.0, 0.5, 0.25, 2.0, 3.0), GpuHours(1.0, planned=1.0)
    assert GpuHours.total([one, other]) == GpuHours(5.0, 1.0, 0.5, 0.25, 2.0, 4.0)
    assert GpuHours.total([one, GpuHours(1.0)]).planned is None
    assert (one.waiting, one.working) == (2.75, 2.25)


def test_the_hours_of_all_runs_of_a_name_are_summed_from_the_ledger(tmp_path, monkeypatch, capsys):
    setup = Setup("T4", "g4dn.metal", 1, 8, "zero", "qlora", "llama", "fp16", {"torch": "2.13.0"})
    for run, hours in (("nightly", GpuHours(4.0, 1.0, planned=3.0)), ("nightly", GpuHours(2.0, 0.0, 0.5, planned=2.0)),
                       ("old", None), ("other", GpuHours(1.0))):  # fmt: skip
        assert ledger.write(str(tmp_path), Record(now(), run, setup, Quantities(), Quantities(), hours=hours))
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["nightly", "2", "5.00", "6.00", "1.00", "0.50"], ["other", "1", "unknown", "1.00", "0.00", "0.00"],
    ]  # fmt: skip

"""docs/planning.md: its table of hours and dollars is what the planner says of configs/ now."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import planning_choices  # noqa: E402
import planning_table  # noqa: E402

QUICK = ("english-quotes", "llama2-13b-full", "llama2-70b-qlora-layers")


def test_the_table_has_every_file():
    assert list(planning_table.written()) == [file.stem for file in planning_table.files()]
    assert len(planning_table.written()) >= 15


@pytest.mark.parametrize("name", QUICK)
def test_the_table_is_current(name):
    (file,) = (file for file in planning_table.files() if file.stem == name)
    assert planning_table.row(file) == planning_table.written()[name]


@pytest.mark.slow
def test_all_of_the_table_is_current():
    rows = {file.stem: planning_table.row(file) for file in planning_table.files() if not file.stem.startswith("demo")}
    assert rows == {name: line for name, line in planning_table.written().items() if name in rows}
    assert len(rows) >= 12


def test_lengths_that_are_assumed_have_the_mean_that_is_said():
    assert sum(planning_table._SPREAD) == pytest.approx(len(planning_table._SPREAD))
    config = planning_table.config_of(ROOT / "configs" / "llama2-7b-qlora.yaml")
    size = planning_table.size_of(config)
    assert size.rows == round(0.98 * 52_002)
    assert sum(size.lengths) / len(size.lengths) == pytest.approx(134, abs=1)


def test_ten_choices_are_others_since_plans_know_time():
    lines = [line for line in planning_choices.written().splitlines() if line.startswith("| ")][1:]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert len(names) >= 10
    assert set(names) <= planning_choices.BEFORE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2-7b-full", "llama2-70b-qlora-layers"])
def test_the_changed_choices_are_current(name):
    assert planning_choices.row(name) in planning_choices.written().splitlines()

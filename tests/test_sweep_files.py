"""The files of sweeps in configs/, and the page of their keys."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import ROOT

from thriftune.config.sweep import BudgetConfig, HalvingConfig, RangeConfig, SweepConfig, SweepRun
from thriftune.config.trials import number_of_trials
from thriftune.models import architecture
from thriftune.planning import catalogue, matching, packing
from thriftune.planning.planner import plan as plan_of
from thriftune.sweeps import cost
from thriftune.sweeps.rounds import PlannedRound, PlannedTrial, SoFar
from thriftune.sweeps.trials import next_trials

FILES = sorted((ROOT / "configs").glob("*-sweep.yaml"))


def sweep_in(file: Path) -> SweepRun:
    return SweepRun.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_a_sweep_with_its_command_and_what_it_takes(file):
    run, text = sweep_in(file), file.read_text(encoding="utf-8")
    assert run.name == file.stem
    options = "" if run.hardware.device == "CPU" else "--remote --copy all "
    commands = re.findall(r"^#   (pyflyte run .*)$", text, re.M)
    assert commands == [f"pyflyte run {options}workflows/sweep.py sweep --config configs/{file.name}"]
    assert "# Hardware: " in text
    assert "# Cost: " in text


def test_there_is_one_for_this_machine_and_one_for_a_cluster():
    assert [file.name for file in FILES] == ["demo-sweep.yaml", "llama2-7b-qlora-sweep.yaml"]
    assert number_of_trials(sweep_in(FILES[0])) == 3


def test_the_header_of_the_larger_one_says_what_the_planner_does():
    run, text = sweep_in(FILES[1]), FILES[1].read_text(encoding="utf-8")
    values = next_trials(run, SoFar())
    assert len(values) == 8
    config = run.as_run
    one = config.model_copy(update={"hardware": config.hardware.model_copy(update={"devices_per_node": 1})})
    plan = plan_of(one, catalogue.load(), architecture=architecture.of(run.model))
    metal = {"T4": matching.matching(config, catalogue.load())}
    (pack,) = packing.packed(dict.fromkeys(values, plan), metal, run.sweep.parallel)
    assert (pack.node.instance, pack.slots) == ("g4dn.metal", 8)
    trials = [PlannedTrial(number, "{}", "{}", packing.on_pack(plan, pack)) for number in values]
    found = cost.expected(PlannedRound(trials, [pack]), run.sweep.parallel)
    assert f"about {found.hours:.1f} hours, at {pack.node.price_per_hour:.2f} USD/h" in text
    assert f"{found.cost:.0f} USD, by the planner" in text.replace("\n# ", " ")
    cost.require_within(run.sweep.budget, found, "USD")
    free = one.model_copy(update={"hardware": one.hardware.model_copy(update={"instance": None, "device": "T4"})})
    cheap = packing.packed(dict.fromkeys(values, plan), {"T4": matching.matching(free, catalogue.load())}, None)
    assert {pack.node.instance for pack in cheap} == {"g4dn.xlarge"}
    assert f"{cheap[0].node.price_per_hour:.2f} instead of {pack.node.price_per_hour / 8:.2f} USD" in text


def test_the_page_of_the_keys_of_a_sweep_is_up_to_date():
    command = [sys.executable, "scripts/config_docs.py", "sweeps"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "sweep-runs.md").read_text(encoding="utf-8")
    assert page == made, "run: python scripts/config_docs.py sweeps > docs/sweep-runs.md"
    keys = [key for section in (SweepConfig, RangeConfig, BudgetConfig, HalvingConfig) for key in section.model_fields]
    assert [key for key in keys if f"| `{key}` |" not in page] == []

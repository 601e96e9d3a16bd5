"""A calibration trains a few steps of a plan, saves nothing of the model, and decides what an estimate left open."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import run_dict
from planning import planned

from tasks import calibrate as task
from tasks import ledger as ledger_of_tasks
from tasks import pin
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, VALIDATION, is_packed, load_split
from thriftune.data.tokenization import IGNORED
from thriftune.errors import ConfigError
from thriftune.planning import calibrated, ledger
from thriftune.planning.ledger import Quantities
from thriftune.training import calibration
from thriftune.training.callbacks import EndAfterUpdates
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.resumable import ResumableTrainer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def run_of(model_dir, method="lora", **sections):
    """A run whose data are nowhere."""
    data = {"source": "nowhere.jsonl", **sections.pop("data", {})}
    training = {"precision": "fp32", "max_steps": 500, **sections.pop("training", {})}
    content = run_dict(method, model={"source": str(model_dir)}, data=data, training=training, **sections)
    return RunConfig.model_validate(content)


def rows_of(config, plan, model_dir, folder):
    calibration.write_rows(calibration.of_few_steps(config, plan), plan, model_dir, folder / "rows")
    return load_split(folder / "rows", TRAIN), load_split(folder / "rows", VALIDATION)


def test_rows_are_as_long_as_the_run_allows_and_batches_have_a_mask_as_its_batches_do(tiny_model_dir, tmp_path):
    config = run_of(tiny_model_dir)
    rows, held_out = rows_of(config, planned(config, model=tiny_model_dir), tiny_model_dir, tmp_path)
    assert len(rows) == len(held_out) >= calibration.STEPS * config.training.global_batch
    assert [len(row) for row in rows["input_ids"]] == rows["length"]
    assert set(rows["length"]) == {config.data.max_length, config.data.max_length - 1}
    labels = np.array(rows[0]["labels"])
    assert labels[0] == IGNORED
    assert (labels[1:] == np.array(rows[0]["input_ids"])[1:]).all()


def test_packed_rows_are_full_and_rows_with_a_class_have_it_at_their_end(tiny_model_dir, tmp_path):
    config = run_of(tiny_model_dir, data={"packing": True})
    rows, held_out = rows_of(config, planned(config, model=tiny_model_dir), tiny_model_dir, tmp_path)
    assert is_packed(rows)
    assert not is_packed(held_out)
    assert set(rows["length"]) == {config.data.max_length}
    classes = {"task": "classification", "classification": {"labels": ["a", "b", "c"]}, "data": {"format": "labelled"}}
    config = run_of(tiny_model_dir, **classes)
    rows, _ = rows_of(config, planned(config, model=tiny_model_dir), tiny_model_dir, tmp_path / "of classes")
    assert {row[-1] for row in rows["labels"]} == {0, 1, 2}
    assert {token for row in rows["labels"] for token in row[:-1]} == {IGNORED}


@pytest.fixture(scope="module")
def measured(tiny_model_dir, tmp_path_factory):
    """A run, its plan, the record of its calibration, and the folder of what it wrote."""
    config = run_of(tiny_model_dir)
    plan = planned(config, model=tiny_model_dir)
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFTUNE_OUTPUTS", str(folder))
        task.calibrate_in_one_process(config=config, plan=plan, model=str(tiny_model_dir))
        (record,) = ledger.read(ledger_of_tasks.place())
    return config, plan, record, folder


def test_three_steps_are_measured_beside_the_plan_and_nothing_of_the_model_is_saved(measured):
    config, plan, record, folder = measured
    assert record.trial == ledger.Trial(ledger.run_key(config), "", plan.micro_batch, plan.accumulation)
    assert record.measured.allocated_gib > 0.2
    assert record.measured.seconds_per_step > 0
    assert record.planned.seconds_per_step == pytest.approx(plan.time.full_seconds)
    assert record.planned.allocated_gib == pytest.approx(record.measured.allocated_gib, rel=0.9)
    assert [file.suffix for file in folder.rglob("*") if file.is_file()] == [".json"]
    shown = calibrated.text("tiny", plan, record)
    assert "planned" in shown
    assert "seconds per step" in shown
    assert "seconds per step" in calibrated.page_of("tiny", plan, record)


def test_a_calibration_is_of_this_run_and_a_plan_that_waits_in_the_cache_is_made_anew(measured, outputs, monkeypatch):
    """A plan from the cache went on to say uncertain, whatever had been measured since."""
    config, _, record, _ = measured
    before = pin.pin(config=config)
    assert pin.pin(config=config) == before
    others = [replace(record, trial=None), replace(record, trial=replace(record.trial, run="another"))]
    assert all(ledger.write(ledger_of_tasks.place(), other) for other in others)
    assert pin.pin(config=config) == before
    ledger.write(ledger_of_tasks.place(), record)
    assert pin.pin(config=config) != before
    same = config.model_copy(update={"name": "other", "seed": 5})
    longer = config.model_copy(update={"data": config.data.model_copy(update={"max_length": 32})})
    assert ledger.run_key(same) == record.trial.run != ledger.run_key(longer)


def test_memory_that_runs_out_is_an_answer_with_figures_which_later_plans_know(tiny_model_dir, outputs, monkeypatch):
    config = run_of(tiny_model_dir)
    plan = planned(config, model=tiny_model_dir)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ResumableTrainer, "training_step", full)
    with pytest.raises(ConfigError, match=r"does not fit: .* ran out with \d\.\d GiB allocated, of") as error:
        task.calibrate_in_one_process(config=config, plan=plan, model=str(tiny_model_dir))
    assert error.value.problems[0].code == "plan-does-not-fit"
    (record,) = ledger.read(ledger_of_tasks.place())
    assert record.trial.ran_out
    assert record.measured == record.planned == Quantities()


def test_on_gpus_what_was_reserved_and_held_beside_is_said_where_memory_ran_out(run_config):
    plan = planned(run_config("qlora", hardware={"device": "T4"}))
    said = str(task._does_not_fit(plan, MemoryUse(13.1, 9.0, 4.0, 4.0, 14.2, 0.2)))
    assert "13.1 GiB allocated, of 14.2 reserved, and 0.2 beside it, of 14.6 GiB" in said
    assert "were planned" in said


def test_steps_that_change_nothing_do_not_count():
    """In fp16 the loss scale was lowered in the first three steps, and Adam had no states when it was all over."""
    skipped = iter([True, True, False, True, False, False])
    counting = EndAfterUpdates(lambda: next(skipped), 3)
    control = type("Control", (), {"should_training_stop": False})()
    stops = []
    for _ in range(6):
        counting.on_step_end(None, None, control)
        stops.append(control.should_training_stop)
    assert stops == [False] * 5 + [True]


def test_in_fp16_there_are_steps_for_the_loss_scale(run_config):
    plan = planned(run_config("qlora", hardware={"device": "T4"}))
    config = run_config("qlora", hardware={"device": "T4"}, evaluation={"prompts": ["Why?"]})
    short = calibration.of_few_steps(config, plan)
    assert plan.precision == "fp16"
    assert short.training.max_steps > calibration.STEPS
    assert (short.evaluation.prompts, short.evaluation.every_steps) == ((), 1)
    assert calibration.of_few_steps(config, replace(plan, precision="bf16")).training.max_steps == calibration.STEPS


@pytest.mark.slow
def test_the_workflow_measures_two_ranks_and_plans_again(tiny_model_dir, tmp_path):
    """As people run it: no data, two processes of Elastic, and a plan that says what it leans on."""
    config = run_of(tiny_model_dir, "full", strategy="fsdp", hardware={"device": "CPU", "devices_per_node": 2})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json(exclude_defaults=True))))
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(tmp_path / "outputs"), "COLUMNS": "200", "HF_TOKEN": ""}
    command = [str(Path(sys.executable).parent / "pyflyte"), "run", "workflows/plan.py", "calibrate", "--config", file]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (record,) = ledger.read(str(tmp_path / "outputs" / "ledger"))
    assert (record.setup.strategy, record.setup.devices_per_node, record.trial.ran_out) == ("fsdp", 2, False)
    assert "seconds per step" in done.stderr + done.stdout
    (folder,) = (tmp_path / "outputs" / "tiny").iterdir()  # named by the time of the run
    made = json.loads((folder / "plan" / "plan.json").read_text())
    # Of two workers the host is nearer to its limit than either.
    assert made["memory"]["verdict"]["leans_on"] == "measured: 1 run on this machine"
    assert made["time"]["leans_on"] == "measured: 1 run on this machine"
    found = json.loads((folder / "calibration" / "calibration.json").read_text())
    assert found["measured"]["seconds_per_step"] == record.measured.seconds_per_step
    assert not list(folder.rglob("*.safetensors"))

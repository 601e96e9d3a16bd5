"""Steps, warmup, uploads and the like: pure functions of numbers, and what is said of them."""

from dataclasses import replace

import pytest
from preflighting import Checking, plan_for

import deepspeed_configs
from thriftune.config import TrainingConfig
from thriftune.errors import ConfigError, ModelSourceError, Problem, TransientError
from thriftune.hardware import DEVICES
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.saving import checkpoint_bytes, upload_seconds
from thriftune.preflight import platform, steps
from thriftune.preflight.platform import LastSave
from thriftune.strategies.zero.strategy import settings_of
from thriftune.training_plan import RunTime, StepTime, Verdict


def training(**values):
    return TrainingConfig.model_validate(values)


def found(rows, **values):
    section = training(**values)
    return {finding.code: finding for finding in steps.check(steps.count(rows, section), section)}


@pytest.mark.parametrize(
    ("rows", "micro_batch", "accumulation", "epochs", "max_steps", "warmup"),
    [(10, 2, 2, 1.0, None, 0.03), (10, 2, 4, 3.0, None, 0.1), (7, 1, 2, 0.5, None, 0.0), (7, 7, 1, 2.5, None, 0.3),
     (50, 4, 2, 1.0, 3, 0.5), (5, 2, 8, 1.0, 40, 0.02)],
)  # fmt: skip
def test_steps_are_counted_as_the_trainer_counts_them(
    rows, micro_batch, accumulation, epochs, max_steps, warmup, tmp_path
):
    import torch
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=micro_batch, gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs, max_steps=max_steps or -1, warmup_steps=warmup, use_cpu=True, report_to="none",
    )  # fmt: skip
    dataset = [{"x": torch.zeros(1)} for _ in range(rows)]
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=dataset)
    total = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1]
    section = training(global_batch=micro_batch * accumulation, epochs=epochs, max_steps=max_steps, warmup_share=warmup)
    counted = steps.count(rows, section)
    assert counted.total == total
    assert counted.warmup == arguments.get_warmup_steps(total)


def test_numbers_that_make_sense_are_not_spoken_of():
    assert found(1000, global_batch=16) == {}
    assert found(16, global_batch=16, log_every=1, warmup_share=0) == {}


def test_fewer_rows_than_a_batch():
    warning = found(10, global_batch=16, epochs=20)["fewer-rows-than-batch"]
    assert "there are 10 rows to train on" in warning.message
    assert "fewer-rows-than-batch" not in found(16, global_batch=16)


def test_max_steps_that_go_over_the_data_again_and_again():
    """max_steps decides alone: a run of one epoch and 1000 steps went over its ten rows 500 times."""
    warning = found(10, global_batch=5, max_steps=1000)["max-steps-beyond-epochs"]
    assert "500.0 times" in warning.message
    assert "max-steps-beyond-epochs" not in found(10, global_batch=5, max_steps=2)
    assert "max-steps-beyond-epochs" not in found(10, global_batch=5, max_steps=6, epochs=3)


@pytest.mark.parametrize(
    ("max_steps", "share", "expected"), [(1, 0.03, True), (10, 0.95, True), (2, 0.03, False), (1, 0, False)]
)
def test_warmup_over_every_step(max_steps, share, expected):
    assert ("warmup-covers-all-steps" in found(100, max_steps=max_steps, warmup_share=share)) == expected


def test_a_run_of_one_step_with_warmup_says_how_far_its_rate_rises():
    message = found(100, max_steps=1)["warmup-covers-all-steps"].message
    assert message == "is 1 of 1 step, so the learning rate reaches 50.0% of its peak."


def test_a_run_shorter_than_the_steps_between_two_lines():
    note = found(100, global_batch=20, log_every=10, warmup_share=0)["first-step-logged-only"]
    assert note.severity == "note"
    assert "5 steps" in note.message
    assert "first-step-logged-only" not in found(200, global_batch=20, log_every=10)


@pytest.fixture
def plan(tiny_model_dir):
    return replace(plan_for("full", tiny_model_dir), trained_parameters=7_000_000_000, precision="fp16")


def test_a_node_uploads_what_trains_there(plan):
    zero1, zero3 = (settings_of(name, deepspeed_configs.load(name)) for name in ("zero1", "zero3"))
    assert checkpoint_bytes(replace(plan, nodes=4, settings=zero3)) == 21_000_000_000
    assert checkpoint_bytes(replace(plan, nodes=4, settings=zero1)) == 35_000_000_000
    adapters = replace(plan, method="qlora", strategy="single", settings="", trained_parameters=1_000_000)
    assert checkpoint_bytes(adapters) == 12_000_000


def test_an_upload_uses_half_of_the_network():
    assert upload_seconds(50_000_000_000, 100) == pytest.approx(8.0)


def test_a_last_save_that_takes_longer_than_the_notice_is_a_warning():
    """A step of minutes left no time to save anything, and nothing said so."""
    assert list(platform.check_last_save(LastSave(30 * 10**9, 20), 120)) == []
    (warning,) = platform.check_last_save(LastSave(98 * 2**30, 4), 120)
    assert (warning.code, warning.severity) == ("upload-exceeds-grace", "warning")
    assert "98.0 GiB per node" in warning.message
    assert "181 s to write, 421 s to upload at 0.25 GB/s: 602 s, and its pod has 120 s" in warning.message
    (warning,) = platform.check_last_save(LastSave(10**6, 5, step_seconds=352), 120)
    assert "352 s until its step is done" in warning.message


def test_a_step_counts_on_spot_nodes_which_get_a_notice(plan):
    time = RunTime(StepTime({"all": 90.0}), (0.6, 1.6), 1.0, 1.0, "", "", 10, {})
    assert platform.last_save(replace(plan, time=time), 10).step_seconds == 0
    assert platform.last_save(replace(plan, time=time, is_spot=True), 10).step_seconds == 90


def test_a_plan_in_a_line(plan):
    line = platform.plan_line(
        replace(plan, nodes=2, instance="g4dn.12xlarge", devices_per_node=4, hardware=DEVICES["T4"])
    )
    assert line.startswith("2 x g4dn.12xlarge (4 T4 each), ")
    assert "fp16" in line


def test_each_problem_of_a_plan_is_a_finding():
    error = ConfigError([Problem.coded("plan-does-not-fit", "hardware", "x", "a."),
                         Problem.coded("zero-config-invalid", "zero.config.stage", "9", "c.")])  # fmt: skip
    assert [found.code for found in platform.check_plan(error)] == ["plan-does-not-fit", "zero-config-invalid"]
    assert [found.code for found in platform.check_plan(TransientError("No answer."))] == ["hub-unreachable"]


def test_a_plan_that_is_there_has_no_problem(plan):
    assert list(platform.check_plan(plan)) == []


def test_gpus_are_not_started_for_a_plan_that_may_not_fit_unless_the_run_accepts_it(plan, run_config):
    """Nodes were bought for a run that ran out of memory at its first step."""
    verdict = Verdict("uncertain", "each GPU", 10.0, 15.0, 14.6, "a calibration measures it")
    there = replace(plan, instance="g4dn.xlarge", memory=replace(plan.memory, verdict=verdict))
    (refused,) = platform.check_certain(run_config(), there)
    assert (refused.code, refused.severity, refused.field) == ("plan-uncertain", "error", "plan.accept_uncertain")
    assert "1 x g4dn.xlarge: each GPU needs 10.0 to 15.0 of 14.6 GiB" in refused.message
    assert refused.remedy.startswith("A calibration measures it. To try all the same: plan.accept_uncertain: true")
    assert list(platform.check_certain(run_config(plan={"accept_uncertain": True}), there)) == []
    sure = replace(there, memory=replace(plan.memory, verdict=replace(verdict, answer="fits")))
    for other in (sure, replace(there, instance=THIS_MACHINE), ConfigError.single("hardware", "", "nothing fits.", "")):
        assert list(platform.check_certain(run_config(), other)) == []


def test_what_the_planner_says_of_a_bad_model_again_is_left_out(tiny_model_dir, chat_rows_file):
    """A model that is not there was reported twice: as not found, and as one whose architecture cannot be read."""
    again = ModelSourceError.single("model.source", "./nowhere", "does not exist or has no config.json.", "Give one.")
    check = Checking(tiny_model_dir, chat_rows_file)
    result = check(options={"plan": again}, model={"source": "./nowhere"})
    assert [found.code for found in result.errors] == ["model-not-found"]
    targets = ConfigError([Problem.coded("lora-refused", "lora.target_modules", "query", "peft refuses them.")])
    result = check("qlora", options={"plan": targets}, lora={"target_modules": ["query"]})
    assert [found.code for found in result.errors] == ["lora-target-missing"]
    assert [found.code for found in check(options={"plan": targets}).errors] == ["lora-refused"]

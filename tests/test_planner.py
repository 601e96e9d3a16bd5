"""A plan says everything that follows from a run, and refuses what this machine or workflow cannot do."""

import json
import pickle

import pytest

import deepspeed_configs
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.planner import make_plan, require_local_hardware, require_method


def test_a_full_plan_has_one_process_per_device_and_the_zero_file(run_config):
    run = run_config(
        hardware={"device": "T4", "nodes": 2, "devices_per_node": 4}, training={"global_batch": 64, "micro_batch": 2}
    )
    zero3 = deepspeed_configs.load("zero3")
    plan = make_plan(run, zero3, model_version="m1", data_version="d1")
    assert (plan.nodes, plan.devices_per_node, plan.processes_per_node) == (2, 4, 4)
    assert plan.precision == "fp16"
    assert (plan.global_batch, plan.micro_batch, plan.accumulation) == (64, 2, 4)
    assert plan.zero_stage == 3
    assert plan.deepspeed_config == zero3
    assert plan.batch.world_size == 8
    assert plan.hardware is DEVICES["T4"]
    assert (plan.model_version, plan.data_version) == ("m1", "d1")


def test_a_qlora_plan_has_one_process_for_all_devices_and_no_zero(run_config):
    run = run_config("qlora", hardware={"device": "A10G", "devices_per_node": 4}, training={"global_batch": 8})
    plan = make_plan(run, None, model_version="m", data_version="d")
    assert (plan.devices_per_node, plan.processes_per_node) == (4, 1)
    assert plan.accumulation == 4
    assert plan.batch.world_size == 1
    assert plan.precision == "bf16"
    assert (plan.zero_stage, plan.deepspeed) == (0, "")


def test_the_batch_of_a_plan_multiplies_back(run_config):
    run = run_config(hardware={"devices_per_node": 3}, training={"global_batch": 24, "micro_batch": 2})
    batch = make_plan(run, deepspeed_configs.load("zero2"), model_version="", data_version="").batch
    assert batch.global_batch == batch.micro_batch * batch.accumulation * batch.world_size == 24


def test_a_zero_file_that_decides_what_the_run_decides_is_refused(run_config):
    with pytest.raises(ConfigError) as caught:
        make_plan(run_config(), {"train_batch_size": 8}, model_version="", data_version="")
    assert [p.field for p in caught.value.problems] == ["zero.config.train_batch_size", "zero.config.zero_optimization"]


def test_a_plan_survives_pickle_and_its_zero_text_is_json(run_config):
    plan = make_plan(run_config(), deepspeed_configs.load("zero1"), model_version="", data_version="")
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert json.loads(plan.deepspeed)["zero_optimization"]["stage"] == 1


def test_the_same_run_makes_the_same_plan(run_config):
    plans = [
        make_plan(run_config(), deepspeed_configs.load("zero3"), model_version="m", data_version="d") for _ in range(2)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("method", "other", "workflow"), [("full", "qlora", "full_finetune"), ("qlora", "full", "qlora_finetune")]
)
def test_the_other_workflow_is_refused_with_the_command_to_run(run_config, method, other, workflow):
    require_method(run_config(method), method)
    with pytest.raises(ConfigError, match=f"method = {method}: .*pyflyte run workflows/{workflow}.py {workflow}"):
        require_method(run_config(method), other)


def test_hardware_that_this_machine_lacks_is_refused_at_once(run_config):
    require_local_hardware(run_config(), DEVICES["CPU"], 0)
    run = run_config(hardware={"device": "T4", "nodes": 2})
    with pytest.raises(ConfigError) as caught:
        require_local_hardware(run, DEVICES["CPU"], 0)
    text = str(caught.value)
    assert [p.field for p in caught.value.problems] == ["hardware.nodes", "hardware.device"]
    assert "this machine has CPU" in text
    assert "--remote" in text


def test_more_gpus_than_this_machine_has_are_refused(run_config):
    run = run_config(hardware={"device": "T4", "devices_per_node": 8}, training={"global_batch": 16})
    require_local_hardware(run, DEVICES["T4"], 8)
    with pytest.raises(ConfigError, match="hardware.devices_per_node = 8: this machine has 1 GPUs"):
        require_local_hardware(run, DEVICES["T4"], 1)


def test_a_misspelt_zero_setting_is_refused_before_any_worker_starts(run_config):
    """DeepSpeed found it in the workers, after the evaluation of the base model had been paid for."""
    run = run_config()
    zero_file = {"zero_optimization": {"stage": 3, "overlap_com": True}}
    with pytest.raises(ConfigError, match="zero.config.zero_optimization.overlap_com = true: DeepSpeed: Extra inputs"):
        make_plan(run, zero_file, model_version="v", data_version="v")

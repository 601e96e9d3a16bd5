"""DeepSpeed configurations: the shipped files, what a person may write, and what DeepSpeed is given."""

import importlib
import json
import sys

import pytest

import deepspeed_configs
from thriftune.batching import Batch
from thriftune.strategies.zero import configuration as zero

BATCH = Batch(global_batch=16, micro_batch=2, accumulation=4, world_size=2)
OPTIMIZATION = zero.Optimization(learning_rate=1e-4, weight_decay=0.1, max_grad_norm=0.5)
NAMES = ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


def complete(config, precision="bf16", hidden=64, *, is_gpu=True):
    return zero.complete(config, BATCH, precision, OPTIMIZATION, hidden, is_gpu=is_gpu)


def autos(value):
    if isinstance(value, dict):
        return sum(autos(v) for v in value.values())
    return int(value == "auto")


def test_the_shipped_files_are_the_five_that_the_documentation_names():
    assert deepspeed_configs.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_valid_and_becomes_complete(name):
    config = deepspeed_configs.load(name)
    assert zero.check(config, "zero.config") == []
    assert zero.stage(config) == int(name[4])
    assert zero.offloads_optimizer(config) == name.endswith("_offload")
    completed = complete(config)
    assert autos(completed) == 0
    assert completed["zero_optimization"]["stage"] == int(name[4])


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_itself_accepts_the_zero_section_of_every_shipped_file(name):
    from deepspeed.runtime.zero.config import get_zero_config

    section = get_zero_config(complete(deepspeed_configs.load(name)))
    assert int(section.stage) == int(name[4])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_batch_size", 8),
        ("train_micro_batch_size_per_gpu", 8),
        ("gradient_accumulation_steps", 8),
        ("fp16", {"enabled": True}),
        ("bf16", {"enabled": False}),
        ("optimizer", {"type": "Adam", "params": {"lr": 1}}),
        ("scheduler", {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}),
        ("gradient_clipping", 1.0),
    ],
)
def test_a_key_that_the_run_decides_is_refused_unless_auto(key, value):
    problems = zero.check({key: value, "zero_optimization": {"stage": 1}}, "zero.config")
    assert [p.field for p in problems] == [f"zero.config.{key}"]
    assert "Remove the key" in problems[0].remedy
    assert zero.check({key: "auto", "zero_optimization": {"stage": 1}}, "zero.config") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {"type": "Lamb"}),
        ("optimizer", {"type": "SGD", "params": {"lr": "auto"}}),
        ("scheduler", {"type": "OneCycle"}),
    ],
)
def test_another_optimizer_or_schedule_is_refused_though_its_numbers_are_auto(key, value):
    (problem,) = zero.check({key: value, "zero_optimization": {"stage": 1}}, "f")
    assert problem.field.startswith(f"f.{key}")


def test_a_value_that_json_does_not_know_is_refused_like_any_other():
    """YAML reads 2026-01-01 as a date."""
    import datetime

    config = {"train_batch_size": datetime.date(2026, 1, 1), "zero_optimization": {"stage": 1}}
    assert [p.field for p in zero.check(config, "f")] == ["f.train_batch_size"]


def test_an_optimizer_whose_numbers_are_all_auto_is_allowed():
    config = {
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 1},
    }
    assert zero.check(config, "zero.config") == []


@pytest.mark.parametrize("config", [{}, {"zero_optimization": 3}, {"zero_optimization": None}])
def test_a_missing_zero_section_is_refused(config):
    (problem,) = zero.check(config, "f")
    assert problem.field == "f.zero_optimization"


@pytest.mark.parametrize("stage", [4, -1, "3", None])
def test_an_unknown_stage_is_refused(stage):
    (problem,) = zero.check({"zero_optimization": {"stage": stage}}, "f")
    assert problem.field == "f.zero_optimization.stage"
    assert "0, 1, 2 or 3" in problem.remedy


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer"),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "offload_param"),
        ({"stage": 3, "offload_param": {"device": "disk"}}, "offload_param.device"),
        ({"stage": 3, "offload_optimizer": "tape"}, "offload_optimizer.device"),
    ],
)
def test_offload_that_cannot_be_is_refused(section, field):
    (problem,) = zero.check({"zero_optimization": section}, "f")
    assert problem.field == f"f.zero_optimization.{field}"


@pytest.mark.parametrize("device", ["cpu", "none"])
def test_offload_that_can_be_is_allowed(device):
    section = {"stage": 3, "offload_optimizer": {"device": device}, "offload_param": {"device": device}}
    assert zero.check({"zero_optimization": section}, "f") == []


def test_several_problems_are_found_at_once():
    config = {"train_batch_size": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 7}}
    assert [p.field for p in zero.check(config, "f")] == [
        "f.train_batch_size",
        "f.bf16",
        "f.zero_optimization.stage",
    ]


def test_complete_writes_every_number_out():
    completed = complete(deepspeed_configs.load("zero3"), hidden=100)
    section = completed["zero_optimization"]
    assert completed["train_batch_size"] == 16
    assert completed["train_micro_batch_size_per_gpu"] == 2
    assert completed["gradient_accumulation_steps"] == 4
    assert completed["gradient_clipping"] == 0.5
    assert completed["optimizer"]["params"]["lr"] == 1e-4
    assert completed["optimizer"]["params"]["weight_decay"] == 0.1
    assert section["reduce_bucket_size"] == 10_000
    assert section["stage3_prefetch_bucket_size"] == 9_000
    assert section["stage3_param_persistence_threshold"] == 1_000
    assert section["sub_group_size"] == zero.SUB_GROUP_ELEMENTS


def test_complete_keeps_what_a_person_wrote():
    config = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 7, "sub_group_size": 9, "overlap_comm": True},
        "steps_per_print": 3,
    }
    completed = complete(config)
    assert completed["steps_per_print"] == 3
    assert completed["zero_optimization"]["reduce_bucket_size"] == 7
    assert completed["zero_optimization"]["sub_group_size"] == 9
    assert completed["zero_optimization"]["overlap_comm"] is True


def test_complete_removes_auto_keys_that_the_run_decides():
    config = {
        "train_batch_size": "auto",
        "scheduler": {"type": "WarmupLR", "params": {"total_num_steps": "auto"}},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
    }
    completed = complete(config)
    assert "scheduler" not in completed
    assert autos(completed) == 0


def test_complete_does_not_change_its_input():
    config = deepspeed_configs.load("zero3")
    before = json.dumps(config)
    complete(config)
    assert json.dumps(config) == before


@pytest.mark.parametrize(("precision", "fp16", "bf16"), [("fp32", 0, 0), ("fp16", 1, 0), ("bf16", 0, 1)])
def test_exactly_the_chosen_precision_is_on(precision, fp16, bf16):
    completed = complete(deepspeed_configs.load("zero2"), precision)
    assert (completed["fp16"]["enabled"], completed["bf16"]["enabled"]) == (bool(fp16), bool(bf16))
    if precision == "fp16":
        assert completed["fp16"]["loss_scale"] == 0, "0 asks for dynamic loss scaling"


@pytest.mark.parametrize("name", NAMES)
def test_only_offloaded_states_of_a_gpu_need_deepspeeds_own_adam(name):
    """On the CPU it was compiled, for minutes, to step what torch's own steps as well."""
    config = deepspeed_configs.load(name)
    on_gpu, on_cpu = (complete(config, is_gpu=is_gpu)["optimizer"]["params"] for is_gpu in (True, False))
    assert on_gpu["torch_adam"] is not name.endswith("_offload")
    assert on_cpu["torch_adam"]


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(FileNotFoundError, match=r"zero4\.json.*zero1, zero2, zero2_offload, zero3, zero3_offload"):
        deepspeed_configs.load("zero4")


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """A copy of the package in another directory, to put broken files into."""
    package = tmp_path / "own_configs"
    package.mkdir()
    source = importlib.resources.files(deepspeed_configs) / "__init__.py"
    (package / "__init__.py").write_text(source.read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    sys.modules.pop("own_configs", None)


def test_broken_json_is_refused_with_the_place_where_it_breaks(own_configs):
    (own_configs / "mine.json").write_text('{\n  "zero_optimization": {,\n}')
    with pytest.raises(ValueError, match=r"mine\.json is not valid JSON: .*line 2"):
        importlib.import_module("own_configs").load("mine")


def test_json_that_is_no_object_is_refused(own_configs):
    (own_configs / "mine.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"mine\.json holds a list, not an object"):
        importlib.import_module("own_configs").load("mine")


def test_an_inline_zero3_configuration_always_gathers_the_model_to_save_it():
    """Without this key DeepSpeed refused to save, after the last step."""
    config = {"zero_optimization": {"stage": 3}}
    assert zero.check(config, "zero.config") == []
    completed = complete(config, "fp16")
    assert completed["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    (problem,) = zero.check(config, "z")
    assert problem.field == "z.zero_optimization.stage3_gather_16bit_weights_on_model_save"


def test_a_misspelt_key_of_deepspeed_is_refused():
    (problem,) = zero.check({"zero_optimisation": 1, "zero_optimization": {"stage": 2}}, "z")
    assert problem.field == "z.zero_optimisation"
    assert "zero_optimization" in problem.remedy


def test_offloading_to_nvme_needs_a_folder():
    section = {"stage": 3, "offload_optimizer": {"device": "nvme"}}
    assert ["no nvme_path" in p.message for p in zero.check({"zero_optimization": section}, "z")] == [True]
    section["offload_optimizer"]["nvme_path"] = "/scratch"
    assert zero.check({"zero_optimization": section}, "z") == []

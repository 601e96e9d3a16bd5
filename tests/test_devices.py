"""Kinds of devices are data: a catalogue adds one, and everything that asks for a device then knows it."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from flytekit import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from planning import TINY

from tasks import provisioning
from thriftune import hardware
from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.planning import catalogue, offers, planner
from thriftune.planning.pod import promise_of
from thriftune.planning.report import plan_json, plan_table
from thriftune.training_plan import TrainingPlan

PAGE = (Path(__file__).parent.parent / "docs" / "planning.md").read_text(encoding="utf-8")
(EXAMPLE,) = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(currency.*?)```", PAGE, re.S))
OWN, NODE = EXAMPLE["devices"]["RTX-3090"], EXAMPLE["nodes"]["under-the-desk"]


def write(folder: Path, content: dict) -> str:
    file = folder / "catalogue.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(file)


def run(**hardware_keys) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "own", "method": "qlora", "model": {"source": "./a-model"}, "hardware": hardware_keys,
         "data": {"source": "rows.jsonl", "format": "alpaca"}}
    )  # fmt: skip


def problems_of(folder: Path, **changes) -> dict[str, str]:
    """The problems of the example with another entry for its device; keys that are None are left out."""
    entry = {key: value for key, value in {**OWN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        catalogue.load(write(folder, EXAMPLE | {"devices": {"RTX-3090": entry}}))
    assert all(problem.remedy for problem in caught.value.problems)
    return {problem.field: str(problem) for problem in caught.value.problems}


# ---- the shipped ones ------------------------------------------------------------------------------------------------


def test_a_speed_is_what_the_data_sheet_states_times_what_is_reached():
    assert asdict(DEVICES["T4"].speed) == pytest.approx(
        {
            "fp32": 0.5 * 8.1e12, "fp16": 0.28 * 65e12, "bf16": 0, "bandwidth": 0.8 * 320e9, "launch": 10e-6,
            "pcie": 0.75 * 15.75e9, "nvlink": 0, "draw": 0,
        }
    )  # fmt: skip


def test_every_gpu_has_a_speed_that_its_kind_can_have():
    """A figure with sparsity, or in bytes for bits, would be outside of these."""
    gpus = [device for device in DEVICES.values() if device.is_gpu]
    assert len(gpus) > 10
    for device in gpus:
        speed = device.speed
        assert (speed.bf16 > 0) == device.has_bf16
        assert 2e12 < speed.fp32 < speed.fp16 < 500e12, device.name
        assert 10 < speed.fp16 / speed.bandwidth < 300, "FLOP per byte of memory"
        assert 8e9 < speed.pcie < 64e9
        assert speed.nvlink == 0 or speed.nvlink > speed.pcie
    assert DEVICES["CPU"].speed is None


def test_no_two_gpus_have_a_name_in_common():
    names = [name for device in DEVICES.values() for name in device.driver_names]
    assert len(names) > 10
    assert len(names) == len(set(names))


# ---- a catalogue's own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The example of the page, with a second node that can be rented."""
    rented = NODE | {"own": False, "gpus": 1, "interconnect": "none"}
    content = EXAMPLE | {"nodes": EXAMPLE["nodes"] | {"rented": rented}}
    return catalogue.load(write(tmp_path_factory.mktemp("own"), content))


def test_a_run_is_planned_on_a_device_that_a_catalogue_adds(own):
    """A kind of GPU was a Literal in Python, a row of a table, and a constant of Flyte's in a second table."""
    assert "RTX-3090" not in DEVICES
    for keys, instance, gpus in (
        ({"instance": "under-the-desk"}, "under-the-desk", 2),
        ({"device": "RTX-3090"}, "rented", 1),
    ):
        plan = planner.plan(run(**keys), own, architecture=TINY)
        assert (plan.instance, plan.device, plan.request.gpus) == (instance, "RTX-3090", plan.devices_per_node)
        assert (plan.precision, plan.device_limit_gib) == ("bf16", 23.5)
        assert plan.request.gpus <= gpus
        assert plan.hardware.speed.bf16 == pytest.approx(0.88 * 71e12)
        assert plan.evaluation.device == "RTX-3090"
        assert promise_of(plan).device == plan.hardware
        assert "x RTX-3090" in plan_table(plan, "own")
        assert json.loads(plan_json(plan, "own"))["derived"]["device"] == "RTX-3090"


def test_a_plan_brings_its_device_to_other_pods(own):
    """They have the package, and need not have the catalogue."""
    plan = planner.plan(run(device="RTX-3090"), own, architecture=TINY)
    context, kind = FlyteContextManager.current_context(), TypeEngine.to_literal_type(TrainingPlan)
    literal = TypeEngine.to_literal(context, plan, TrainingPlan, kind)
    again = TypeEngine.to_python_value(context, literal, TrainingPlan)
    assert again == plan
    assert (again.hardware.driver_names, again.hardware.compute_capability) == (("NVIDIA GeForce RTX 3090",), (8, 6))
    assert again.hardware.speed.bandwidth > 0


@pytest.mark.parametrize(("is_on", "device"), [(True, "nvidia-geforce-rtx-3090"), (False, None)])
def test_flyte_selects_nodes_by_the_label_that_the_catalogue_gives(own, monkeypatch, is_on, device):
    given = {}

    class Node:
        def with_overrides(self, **overrides):
            given.update(overrides)

    monkeypatch.setattr(provisioning, "PLATFORM", provisioning.PLATFORM.model_copy(update={"accelerator": is_on}))
    provisioning.on_planned_node(Node(), planner.plan(run(device="RTX-3090"), own, architecture=TINY))
    accelerator = given["accelerator"]
    assert (accelerator and accelerator.to_flyte_idl().device) == device


def test_this_machine_s_gpu_may_be_one_of_the_catalogue_s(own, monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA GeForce RTX 3090", int(23.6 * 2**30), 8, 6

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert offers.this_machine(devices=own.devices).device == own.devices["RTX-3090"]
    assert hardware.detect_device().name == "A10G", "the shipped kind with its capability and memory"
    monkeypatch.setattr(Properties, "total_memory", 12 * 2**30)
    monkeypatch.setattr(Properties, "name", "NVIDIA GeForce RTX 3060")
    with pytest.raises(ConfigError, match=r"RTX 3060: is this machine's GPU \(12 GiB, .* 8\.6\), .*Add it to a cat"):
        offers.this_machine()


def test_a_catalogue_may_say_something_else_of_a_shipped_device(tmp_path):
    speed = {"tflops": {"fp32": 4, "fp16": 20}, "bandwidth_gbs": 200}
    slower = {"compute_capability": 7.5, "memory_gib": 16, "speed": speed}
    node = NODE | {"device": "T4", "gpu_gib": 14, "bf16": False}
    content = EXAMPLE | {"devices": {"T4": slower}, "nodes": {"mine": node}}
    devices = catalogue.load(write(tmp_path, content)).devices
    assert devices["T4"].speed.bandwidth == pytest.approx(160e9)
    assert DEVICES["T4"].speed.bandwidth > 200e9
    assert set(devices) == set(DEVICES)


def test_without_a_speed_memory_is_planned(tmp_path):
    entry = {key: value for key, value in OWN.items() if key != "speed"}
    nodes = catalogue.load(write(tmp_path, EXAMPLE | {"devices": {"RTX-3090": entry}}))
    plan = planner.plan(run(instance="under-the-desk"), nodes, architecture=TINY)
    assert plan.hardware.speed is None
    assert 0 < plan.memory.device_gib < plan.device_limit_gib


SPEED = OWN["speed"]


def speed(**changes) -> dict:
    return {"speed": SPEED | changes}


def peaks(**tflops) -> dict:
    return speed(tflops=tflops)


@pytest.mark.parametrize(
    ("changes", "key", "texts"),
    [
        ({"compute_capability": 86}, "compute_capability", ["86", "is no compute capability", "such as 8.6"]),
        ({"compute_capability": 0.0}, "compute_capability", ["0.0", "is the CPU"]),
        ({"compute_capability": None}, "compute_capability", ["is missing", "such as 8.6"]),
        ({"memory_gib": -24}, "memory_gib", ["-24", "greater than or equal to 0", "16 for a T4"]),
        ({"memory_gib": 24576}, "memory_gib", ["24576", "less than or equal to 4096"]),
        ({"memory_gib": 0}, "memory_gib", ["= 0", "leaves a GPU without memory"]),
        ({"driver_names": "NVIDIA"}, "driver_names", ["'NVIDIA'", "a list", "Write driver_names: [NVIDIA]"]),
        ({"accelerator": "NVIDIA RTX"}, "accelerator", ["'NVIDIA RTX'", "label"]),
        ({"price": 3}, "price", ["is not a key", "The keys here are compute_capability, memory_gib"]),
        (speed(bandwidth_gbs=0.936), "speed.bandwidth_gbs", ["0.936", "greater than or equal to 1", "not TB/s"]),
        (speed(bandwidth_gbs=-936), "speed.bandwidth_gbs", ["-936"]),
        (speed(pcie_gbs=float("nan")), "speed.pcie_gbs", ["nan", "finite"]),
        (speed(reached={"fp16": 45}), "speed.reached.fp16", ["45", "less than or equal to 1", "at most 1"]),
        (speed(flops=3), "speed.flops", ["is not a key", "tflops"]),
        (speed(tflops=71), "speed.tflops", ["71", "mapping"]),
        ({"speed": {"tflops": SPEED["tflops"]}}, "speed.bandwidth_gbs", ["is missing"]),
        (peaks(fp32=35.6e12, fp16=71, bf16=71), "speed.tflops.fp32", ["less than or equal to 10000"]),
        (peaks(fp16=71, bf16=71), "speed.tflops.fp32", ["is missing"]),
        (peaks(fp32=35.6, bf16=71), "speed", ["leaves tflops.fp16 out"]),
        (peaks(fp32=35.6, fp16=71), "speed", ["no bfloat16, or none where it has"]),
    ],
)
def test_an_absurd_figure_is_named_with_its_value_and_a_remedy(tmp_path, changes, key, texts):
    """Nothing is said besides of the node that has the device: it would be right once the figure is."""
    problems = problems_of(tmp_path, **changes)
    problem = problems.pop(f"catalogue.devices.RTX-3090.{key}")
    assert not problems
    for text in texts:
        assert text in problem


@pytest.mark.parametrize(
    ("devices", "field", "text"),
    [
        (["RTX-3090"], "catalogue.devices", "is not a mapping"),
        ({"RTX 3090": OWN, "RTX-3090": OWN}, "catalogue.devices.RTX 3090", "cannot be the name of a device"),
        ({"RTX-3090": 24}, "catalogue.devices.RTX-3090", "Its keys are compute_capability, memory_gib,"),
        ({"RTX-3090": OWN, "CPU": OWN}, "catalogue.devices.CPU.compute_capability", "does not go with this name"),
        ({"RTX-309O": OWN}, "catalogue.nodes.under-the-desk.device", "or RTX-309O?"),
        ({}, "catalogue.nodes.under-the-desk.device", "is no known device"),
    ],
)
def test_a_section_that_is_none_and_a_node_without_its_device_are_named(tmp_path, devices, field, text):
    with pytest.raises(ConfigError) as caught:
        catalogue.load(write(tmp_path, EXAMPLE | {"devices": devices}))
    assert text in {problem.field: str(problem) for problem in caught.value.problems}[field]

"""How much memory a model may fill on each device, and what comes out of loading one."""

import pytest

from thriftune.hardware import DEVICES
from thriftune.models.loading import Placement, attach_adapters, load_model, max_memory
from thriftune.models.quantization import FourBit

GIB = 2**30


def test_each_gpu_may_be_filled_to_nine_tenths_of_what_is_free():
    assert max_memory(DEVICES["T4"], {0: 10 * GIB, 1: 14 * GIB}, 100 * GIB) == {0: 9 * GIB, 1: int(12.6 * GIB)}


def test_a_gpu_machine_offers_no_host_memory():
    assert "cpu" not in max_memory(DEVICES["T4"], {0: GIB}, 100 * GIB)


def test_the_cpu_offers_host_memory_only():
    assert max_memory(DEVICES["CPU"], {}, 10 * GIB) == {"cpu": 9 * GIB}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_model_is_loaded_in_its_precision(tiny_model_dir, precision, dtype):
    import torch

    model = load_model(tiny_model_dir, Placement(DEVICES["CPU"], precision))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_model_without_adapters_is_itself(tiny_model_dir):
    model = load_model(tiny_model_dir, Placement(DEVICES["CPU"], "fp32"))
    assert attach_adapters(model, {}) is model


def test_the_first_adapter_is_active_and_nothing_trains(tiny_model_dir, random_adapter):
    model = load_model(tiny_model_dir, Placement(DEVICES["CPU"], "fp32"))
    attached = attach_adapters(model, {"one": random_adapter(seed=1), "two": random_adapter(seed=2)})
    assert set(attached.peft_config) == {"one", "two"}
    assert attached.active_adapter == "one"
    assert not any(p.requires_grad for p in attached.parameters())


def test_four_bit_layers_are_quantized_and_the_head_is_not(tiny_model_dir):
    model = load_model(tiny_model_dir, Placement(DEVICES["CPU"], "fp32", FourBit()))
    quantized = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert quantized == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert type(model.lm_head).__name__ == "Linear"

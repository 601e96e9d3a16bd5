"""Precision follows the hardware, never what torch is willing to emulate."""

from dataclasses import replace

import pytest

from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES, bf16_flag, choose_precision, detect_device, device_of

WITHOUT_BF16 = ("T4", "V100", "V100-32GB")
WITH_BF16 = ("A10G", "L4", "L40S", "RTX-4090", "A100-40GB", "A100-80GB", "H100", "H200")


def test_the_tables_of_this_test_cover_every_device():
    assert {*WITHOUT_BF16, *WITH_BF16, "CPU"} == set(DEVICES)


@pytest.mark.parametrize(
    ("requested", "names", "expected"),
    [
        ("auto", WITHOUT_BF16, "fp16"),
        ("auto", WITH_BF16, "bf16"),
        ("auto", ("CPU",), "fp32"),
        ("fp16", WITHOUT_BF16 + WITH_BF16, "fp16"),
        ("bf16", (*WITH_BF16, "CPU"), "bf16"),
        ("fp32", tuple(DEVICES), "fp32"),
    ],
)
def test_the_precision_that_is_chosen(requested, names, expected):
    assert {name: choose_precision(requested, DEVICES[name]) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize("name", WITHOUT_BF16)
def test_bf16_is_never_emulated(name):
    assert not DEVICES[name].has_bf16
    with pytest.raises(ConfigError, match=f"training.precision = bf16: {name} .*no bfloat16.*'fp16'"):
        choose_precision("bf16", DEVICES[name])


def test_fp16_is_refused_on_the_cpu():
    with pytest.raises(ConfigError, match=r"training\.precision = fp16: .*CPU.*'fp32'"):
        choose_precision("fp16", DEVICES["CPU"])


def test_every_gpu_has_memory_and_talks_nccl():
    gpus = [device for device in DEVICES.values() if device.is_gpu]
    assert len(gpus) == 11
    for device in gpus:
        assert device.memory_gib >= 16
        assert device.backend == "nccl"


def test_each_device_is_found_under_its_own_name():
    assert all(device.name == name for name, device in DEVICES.items())


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        (("Tesla T4", 14.56, (7, 5)), "T4"),
        (("NVIDIA A100-SXM4-40GB", 39.4, (8, 0)), "A100-40GB"),
        (("NVIDIA A100-SXM4-80GB", 79.2, (8, 0)), "A100-80GB"),
        (("NVIDIA A100-SXM4-80GB", 80.0, (8, 0)), "A100-80GB"),  # NVML counts what the driver takes, too
        (("NVIDIA H200", 139.8, (9, 0)), "H200"),
        (("Tesla V100-SXM2-32GB", 31.7, (7, 0)), "V100-32GB"),
        # These have the same capability and memory: the driver's name says which it is.
        (("NVIDIA L4", 22.0, (8, 9)), "L4"),
        (("NVIDIA GeForce RTX 4090", 23.5, (8, 9)), "RTX-4090"),
        (("NVIDIA RTX 5000 Ada", 23.5, (8, 9)), "L4"),  # a name that nobody told
        (("Tesla T4", 14.6, (8, 9)), "Tesla T4"),  # a name that is another's
        (("NVIDIA A10", 22.1, (8, 6)), "A10G"),
        (("a part of an A100", 9.5, (8, 0)), "a part of an A100"),
    ],
)
def test_a_gpu_is_known_by_what_the_driver_shows(shown, name):
    assert device_of(*shown).name == name


def test_the_cpu_talks_gloo_and_is_no_gpu():
    assert DEVICES["CPU"].backend == "gloo"
    assert not DEVICES["CPU"].is_gpu


@pytest.mark.parametrize(
    ("cpuinfo", "flag", "precision"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile\n", "avx512_bf16", "bf16"),
        ("flags : fpu avx512_bf16 amx_bf16\n", "amx_bf16", "bf16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16", "bf16"),
        ("flags\t\t: fpu sse2 avx2 avx512f\n", "", "fp32"),
        ("model name : a CPU with avx512_bf16\n", "", "fp32"),
        ("", "", "fp32"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(cpuinfo, flag, precision):
    """auto was fp32 on every CPU: four times as long a step where there are such instructions."""
    assert bf16_flag(cpuinfo) == flag
    assert choose_precision("auto", replace(DEVICES["CPU"], bf16_flag=flag)) == precision


def test_a_machine_without_cuda_is_the_cpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert detect_device().name == "CPU"

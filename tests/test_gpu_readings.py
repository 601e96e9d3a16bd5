"""What is read of GPUs: from NVML as far as it answers, and from a process that may hang, crash or find nothing."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from thriftune import gpu_trial
from thriftune.gpu_readings import DrivenGpu, Driver, Trial, TriedGpu, read_driver, try_gpus
from thriftune.pod_reading import read_pod

GIB = 2**30
FOUND = """
import json
print("a word of some library")
print('{"level": "info", "message": "a library that logs JSON"}')
gpu = {"name": "Tesla T4", "memory_gib": 14.5, "capability": [7, 5], "error": ""}
code = ["sm_100", "sm_75", "compute_120"]
print(json.dumps({"torch": "2.13.0", "cuda": "13.0", "architectures": code, "gpus": [gpu]}))
print("a word at the end")
print('{"level": "info", "message": "and another"}')
"""


@pytest.fixture
def nvml(monkeypatch):
    """A driver with one GPU, which a process holds 2 GiB of."""

    def put(**answers):
        for question, answer in answers.items():
            monkeypatch.setattr(pynvml, question, answer)

    put(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "535.183.01",
        nvmlSystemGetCudaDriverVersion=lambda: 12020,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda _: "NVIDIA A100",
        nvmlDeviceGetCudaComputeCapability=lambda _: (8, 0),
        nvmlDeviceGetMemoryInfo=lambda _, version: SimpleNamespace(total=40 * GIB, used=2 * GIB),
        nvmlDeviceGetMigMode=lambda _: [0, 1],
        nvmlDeviceGetComputeRunningProcesses=lambda _: [
            SimpleNamespace(pid=4711, usedGpuMemory=2 * GIB),
            SimpleNamespace(pid=4712, usedGpuMemory=None),  # the driver does not always know
        ],
    )
    return put


def refused(*_):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)


def test_a_driver_says_what_is_held_and_by_whom(nvml):
    gpu = DrivenGpu("NVIDIA A100", 40.0, (8, 0), 2.0, ("process 4711 (2.0 GiB)", "process 4712"), is_divided=False)
    assert read_driver() == Driver("535.183.01", (12, 2), (gpu,))


def test_of_a_divided_gpu_a_container_may_ask_little(nvml):
    nvml(nvmlDeviceGetMigMode=lambda _: [1, 1], nvmlDeviceGetMemoryInfo=refused)
    nvml(nvmlDeviceGetComputeRunningProcesses=refused)
    assert read_driver().gpus == (DrivenGpu("NVIDIA A100", 0.0, (8, 0), is_divided=True),)


def test_a_gpu_older_than_mig_has_no_mode(nvml):
    nvml(nvmlDeviceGetMigMode=refused)
    assert not read_driver().gpus[0].is_divided


@pytest.mark.parametrize(
    ("question", "version"), [("nvmlInit", ""), ("nvmlDeviceGetCount", "535.183.01")], ids=["nvmlInit", "nvmlCount"]
)
def test_a_driver_that_does_not_answer_says_why(nvml, question, version):
    nvml(**{question: refused})
    driver = read_driver()
    assert (driver.version, driver.gpus, driver.error) == (version, (), "Insufficient Permissions")
    assert driver.is_broken


def test_a_gpu_that_fell_off_the_bus_is_named_and_the_others_are_read(nvml):
    """One lost GPU hid all others of the pod."""

    def handle(index):
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    nvml(nvmlDeviceGetCount=lambda: 3, nvmlDeviceGetHandleByIndex=handle)
    driver = read_driver()
    assert [gpu.name for gpu in driver.gpus] == ["NVIDIA A100", "NVIDIA A100"]
    assert (driver.error, driver.is_broken) == ("GPU 1: GPU is lost", True)


def script(folder, text):
    file = folder / "trial.py"
    file.write_text(text)
    return file


def test_a_trial_says_what_torch_has_code_for_and_what_became_of_each_gpu(tmp_path):
    trial = try_gpus(script(tmp_path, FOUND))
    assert trial.gpus == (TriedGpu("Tesla T4", 14.5, (7, 5)),)
    assert (trial.torch, trial.cuda, trial.least_capability) == ("2.13.0", "13.0", (7, 5))
    assert Trial().least_capability == (0, 0)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with SIGSEGV"),
        ("raise ImportError('libcudnn.so.9 is missing')",
         "its process ended with exit status 1: ImportError: libcudnn.so.9 is missing"),
        ("print('a word of some library'); print('[1]')", "its process printed no result"),
        ("", "its process printed no result"),
        ("import time; time.sleep(60)", "it did not answer within 0.5 s"),
    ],
    ids=["crashes", "fails", "says something else", "says nothing", "hangs"],
)  # fmt: skip
def test_a_trial_that_does_not_end_well_says_how_it_ended(tmp_path, text, error):
    began = time.monotonic()
    assert try_gpus(script(tmp_path, text), seconds=0.5 if "sleep" in text else 60) == Trial(error=error)
    assert time.monotonic() - began < 30


def test_what_the_trial_prints_is_what_is_read_of_it(tmp_path, monkeypatch):
    """torch's own arithmetic, on the CPU, in place of three GPUs: one works, one fails, one is wrong."""
    ones = torch.ones

    def ones_on(*shape, device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: uncorrectable ECC error")
        return ones(*shape) * (2 if device == "cuda:2" else 1)

    monkeypatch.setattr(torch, "ones", ones_on)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    card = SimpleNamespace(name="Tesla T4", total_memory=14 * GIB, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    trial = try_gpus(script(tmp_path, f"print({json.dumps(gpu_trial.trial())!r})"))
    assert (trial.torch, trial.cuda, trial.architectures) == (torch.__version__, "13.0", ("sm_75",))
    assert {(gpu.name, gpu.memory_gib, gpu.capability) for gpu in trial.gpus} == {("Tesla T4", 14.0, (7, 5))}
    wrong = "a sum of products of ones is 1.04858e+06 in place of 262144"
    assert [gpu.error for gpu in trial.gpus] == ["", "CUDA error: uncorrectable ECC error", wrong]


def test_a_torch_that_finds_no_gpu_says_why(monkeypatch):
    def lost():
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lost)
    assert gpu_trial.trial() == {"torch": torch.__version__, "cuda": "13.0", "error": "No CUDA GPUs are available"}


@pytest.mark.parametrize("error", [ImportError("libcudnn.so.9 is missing"), OSError("libcudnn.so.9 is missing")])
def test_a_torch_that_cannot_be_imported_is_a_fault_of_the_image(tmp_path, error):
    """It was taken for one of the node, and tried again."""
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"raise {error!r}")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{Path(gpu_trial.__file__).read_text()}"
    trial = try_gpus(script(tmp_path, code))
    assert trial == Trial(error=f"{type(error).__name__}: libcudnn.so.9 is missing", is_importable=False)


def test_the_real_trial_says_what_this_machine_s_torch_is_built_for():
    trial = try_gpus()
    assert (trial.torch, trial.cuda) == (torch.__version__, torch.version.cuda or "")
    assert len(trial.gpus) == torch.cuda.device_count()
    assert not any(gpu.error for gpu in trial.gpus)


def test_a_pod_without_a_driver_is_read_without_a_trial():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = read_pod({"NVIDIA_VISIBLE_DEVICES": "void"})
    assert (found.gpus, found.trial, found.variables) == ((), None, {"NVIDIA_VISIBLE_DEVICES": "void"})
    assert found.driver.error
    assert not found.driver.is_broken
    assert found.cpus > 0
    assert found.shared_memory_gib > 0

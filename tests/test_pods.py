"""What a pod on GPUs says when it is not what was planned: each row of the table in docs/pods.md, by its readings."""

import logging
import re
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from flytekit import FlyteContextManager
from flytekit.core.context_manager import ExecutionParameters
from flytekit.core.data_persistence import FileAccessProvider
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.models.core.identifier import WorkflowExecutionIdentifier
from flytekit.types.directory import FlyteDirectory
from planning import planned

from tasks import pod_check
from tasks.evaluate import evaluate
from tasks.generate import generate_answers
from tasks.platform import Platform
from tasks.train import train_1, train_2, train_in_one_process
from thriftune.codes import CODES
from thriftune.errors import PodError, TransientError, chain_of
from thriftune.gpu_readings import DrivenGpu, Driver, Trial, TriedGpu, read_driver
from thriftune.hardware import DEVICES, Device
from thriftune.planned_node import NodeRequest
from thriftune.planning.node_types import NodeType
from thriftune.planning.pod import Promise, differences, job_problem, passing, promise_of, require_none
from thriftune.pod_reading import PodReading
from thriftune.stores.store import Store

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "pods.md").read_text(encoding="utf-8")
PROMISE = Promise(NodeRequest(cpus=6, memory_gib=24, shared_memory_gib=2, disk_gib=64, gpus=2), DEVICES["T4"], 14.56)
T4, TRIED = DrivenGpu("Tesla T4", 15.0, (7, 5), held_gib=0.01), TriedGpu("Tesla T4", 14.56, (7, 5))
DRIVER = Driver("580.95.05", (13, 0), (T4, T4))
TRIAL = Trial("2.13.0+cu130", "13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), (TRIED, TRIED))
FOUND = PodReading(DRIVER, TRIAL, cpus=6.0, memory_gib=24.0, shared_memory_gib=2.0)
NO_NVML = Driver(error="NVML Shared Library Not Found")
OLD = "The NVIDIA driver on your system is too old (found version 12020)."
NONE = "No CUDA GPUs are available"
NO_LIBRARY = "ImportError: libcudnn.so.9: cannot open shared object file"
LOST = replace(DRIVER, gpus=(T4,), error="GPU 1: GPU is lost", is_broken=True)
ECC = "CUDA error: uncorrectable ECC error encountered"
V100 = TriedGpu("Tesla V100-SXM2-16GB", 15.77, (7, 0), "CUDA error: no kernel image is available")
A10G = TriedGpu("NVIDIA A10G", 22.06, (8, 6))
A100, PART = DrivenGpu("NVIDIA A100-SXM4-80GB", 80.0, (8, 0), is_divided=True), TriedGpu("a part", 9.5, (8, 0))


def driven(*gpus: DrivenGpu) -> Driver:
    return replace(DRIVER, gpus=gpus)


def tried(*gpus: TriedGpu, error: str = "") -> Trial:
    return replace(TRIAL, gpus=gpus, architectures=TRIAL.architectures if gpus else (), error=error)


def of(promise: Promise = PROMISE, **readings):
    return differences(promise, replace(FOUND, **readings))


def held(gib: float, *holders: str) -> DrivenGpu:
    return replace(T4, held_gib=gib, holders=holders)


ON_V100 = replace(PROMISE, device=DEVICES["V100"])
# The problems of each row, by what it says was read.
CASES = {
    "no PyTorchJob": [job_problem(2, None)],
    "a PyTorchJob of 3": [job_problem(2, "3:3")],
    "no driver in the pod: no device plugin": of(driver=NO_NVML, trial=None),
    "a driver, and no GPU": of(driver=driven(), trial=tried(error=NONE), variables={"NVIDIA_VISIBLE_DEVICES": "void"}),
    "GPUs that are hidden": of(trial=tried(error=NONE), variables={"CUDA_VISIBLE_DEVICES": ""}),
    "1 of 2 GPUs that are there": of(trial=tried(TRIED), variables={"CUDA_VISIBLE_DEVICES": "0"}),
    "1 GPU": of(driver=driven(T4), trial=tried(TRIED)),
    "2 of 6 CPUs": of(cpus=2.0),
    "1 of 24 GiB": of(memory_gib=1.0),
    "3 GPUs": of(driver=driven(T4, T4, T4), trial=tried(TRIED, TRIED, TRIED)),
    "no volume at /dev/shm": of(shared_memory_gib=0.0625),
    "driver 535": of(driver=replace(DRIVER, version="535.183.01", cuda=(12, 2)), trial=tried(error=OLD)),
    "an old driver, without NVML": of(driver=NO_NVML, trial=tried(error=OLD)),
    "the image for CPUs": of(trial=Trial("2.13.0+cpu")),
    "an image that lacks a library": of(trial=Trial(error=NO_LIBRARY, is_importable=False)),
    "a V100": of(ON_V100, trial=tried(V100, V100), driver=driven(T4)),
    "A10G": of(trial=tried(A10G, A10G)),
    "T4 that show 14 GiB": of(trial=tried(*[replace(TRIED, memory_gib=14.0)] * 2)),
    "MIG": of(driver=driven(A100, A100), trial=tried(PART, PART)),
    "a process that can be seen": of(driver=driven(T4, held(6.1, "process 4711 (6.0 GiB)"))),
    "a process that cannot be seen": of(driver=driven(held(6.1), T4)),
    "a GPU that is broken": of(trial=tried(TRIED, replace(TRIED, error=f"{ECC}\n"))),
    "a driver that is not the one it was": of(
        driver=Driver(error="Driver/library version mismatch", is_broken=True), trial=tried(error="Error 803")
    ),
    "a driver that hangs": of(trial=Trial(error="it did not answer within 180 s")),
    "a driver that crashes": of(trial=Trial(error="its process ended with SIGSEGV")),
    "2 GPUs, of which 1 fell off the bus": of(driver=LOST, trial=tried(TRIED)),
    "2 GPUs, of which torch finds 1": of(trial=tried(TRIED)),
    "a GPU that is broken, without NVML": of(driver=NO_NVML, trial=tried(error="CUDA unknown error")),
}
ROWS = [re.split(r" \| ", line.strip("| \n")) for line in PAGE.splitlines() if line.startswith("| `")]


def test_every_code_is_in_the_table_and_every_row_is_tested():
    codes = {code for code in CODES if code.startswith(("pod-", "gpu-"))}
    assert {row[0].strip("`") for row in ROWS} == codes
    assert [row[1] for row in ROWS] == list(CASES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_a_row(row):
    code, read, again, text = row
    (problem,) = CASES[read]
    assert (f"`{problem.code}`", f"`{problem}`") == (code, text)
    with pytest.raises(TransientError if again == "yes" else PodError, match=re.escape(str(problem))):
        require_none([problem])


def test_the_lines_for_flyte_are_those_of_the_page_for_clusters():
    (problem,) = CASES["no PyTorchJob"]
    lines = yaml.safe_load(problem.remedy.partition("(docs/cluster.md): ")[2])
    (values,) = re.findall(r"```yaml\n(configuration:.*?)```", (DOCS / "cluster.md").read_text(), re.S)
    assert lines["tasks"] == yaml.safe_load(values)["configuration"]["inline"]["tasks"]


@pytest.mark.parametrize(
    "readings",
    [
        {},
        {"cpus": 96.0, "memory_gib": None, "shared_memory_gib": 40.0},  # no limits
        {"cpus": 5.99, "memory_gib": 23.99, "trial": tried(*[replace(TRIED, memory_gib=14.4)] * 2)},
        {"driver": NO_NVML},  # an image without NVIDIA's utilities: torch says the rest
        {"driver": replace(DRIVER, cuda=(12, 8))},  # with the packages for forward compatibility it works
        {"variables": {"CUDA_VISIBLE_DEVICES": "0,1", "NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}},
    ],
)
def test_a_pod_as_planned_differs_in_nothing(readings):
    assert of(**readings) == []
    require_none([])


def test_one_message_names_all_that_differ():
    """Flyte's own limits: one GPU, 2 CPUs and 1 GiB; and nothing of the node is right. It is not tried again."""
    problems = of(cpus=2.0, memory_gib=1.0, shared_memory_gib=0.0625, driver=driven(held(3.0)), trial=tried(A10G))
    with pytest.raises(PodError) as caught:
        require_none(problems)
    text = str(caught.value)
    assert text.startswith("This pod is not what was planned (6 problems):\n")
    named = re.findall(r"^  - (.*?)(?: =|:)", text, re.M)
    assert named == ["GPUs", "GPU 0", "GPU 0", "CPUs", "memory", "/dev/shm"]


def codes_of(problems):
    return [problem.code for problem in problems]


@pytest.mark.parametrize(
    ("readings", "codes"),
    [
        ({"driver": LOST}, ["gpu-unusable", "gpu-unusable"]),  # CUDA itself fails where a GPU is lost
        ({"driver": Driver(error="GPU 0: GPU is lost; GPU 1: GPU is lost", is_broken=True)}, ["gpu-unusable"]),
        ({"driver": NO_NVML}, ["gpu-unusable"]),
        ({"driver": NO_NVML, "trial": Trial(error="it did not answer within 180 s")}, ["gpu-unusable"]),
        ({"driver": NO_NVML, "trial": Trial(error=NO_LIBRARY, is_importable=False)}, ["gpu-torch-broken"]),
        ({"driver": NO_NVML, "trial": tried(error=NONE)}, ["gpu-not-visible"]),
        ({"driver": NO_NVML, "trial": tried(error="Found no NVIDIA driver on your system.")}, ["gpu-not-visible"]),
        ({"driver": NO_NVML, "trial": tried(TRIED)}, ["pod-cut-down"]),
        ({"trial": tried(TRIED), "variables": {"CUDA_VISIBLE_DEVICES": "0, 1"}}, ["gpu-unusable"]),  # hides none
    ],
    ids=str,
)
def test_a_broken_gpu_is_not_taken_for_a_cluster_that_is_set_up_wrongly(readings, codes):
    """One that fell off the bus ended the run for good, with advice to raise Flyte's limits."""
    assert codes_of(of(**{"trial": tried(error="CUDA unknown error"), **readings})) == codes


def test_a_lost_gpu_that_is_not_needed_is_no_matter():
    one = replace(PROMISE, request=replace(PROMISE.request, gpus=1))
    assert of(one, driver=LOST, trial=tried(TRIED)) == []


@pytest.mark.parametrize(
    ("readings", "codes"),
    [
        ({"driver": driven(A100, A100)}, ["gpu-not-visible", "gpu-divided"]),
        ({"driver": driven(held(3.0), T4)}, ["gpu-not-visible", "gpu-shared"]),
        ({"driver": replace(DRIVER, cuda=(12, 2))}, ["gpu-not-visible", "gpu-driver-too-old"]),
        ({"driver": driven(replace(T4, name="NVIDIA A10G", memory_gib=22.5, capability=(8, 6)))},
         ["gpu-not-visible", "gpu-other-kind"]),
        ({"driver": NO_NVML}, ["gpu-not-visible"]),
    ],
    ids=str,
)  # fmt: skip
def test_where_gpus_are_hidden_the_driver_s_problems_are_named_too(readings, codes):
    found = of(trial=tried(error=NONE), variables={"CUDA_VISIBLE_DEVICES": "-1"}, **readings)
    assert codes_of(found) == codes


RTX_3060 = TriedGpu("NVIDIA GeForce RTX 3060", 11.63, (8, 6))
RTX_2080_TI = TriedGpu("NVIDIA GeForce RTX 2080 Ti", 10.57, (7, 5))
A6000 = TriedGpu("NVIDIA RTX A6000", 47.4, (8, 6))
H100_NVL = TriedGpu("NVIDIA H100 NVL", 93.1, (9, 0))


@pytest.mark.parametrize(
    ("card", "planned_as", "gpu_gib", "codes"),
    [
        (RTX_3060, "A10G", 11.6, []),
        (RTX_2080_TI, "T4", 10.6, []),
        (A6000, "A10G", 24.0, []),
        (H100_NVL, "H100", 80.0, []),
        (TriedGpu("NVIDIA H200", 139.8, (9, 0)), "H100", 80.0, ["gpu-other-kind"]),
        (TriedGpu("NVIDIA GeForce RTX 4090", 23.5, (8, 9)), "L4", 21.96, ["gpu-other-kind"]),  # alike but for the name
        (RTX_3060, "A10G", 21.98, ["gpu-too-little-memory"]),  # the catalogue's own entry, not one for this card
        (RTX_3060, "T4", 11.6, ["gpu-other-kind"]),  # of another compute capability
        (A10G, "T4", 14.56, ["gpu-other-kind"]),  # cards in the table
        (TriedGpu("NVIDIA A100-PCIE-40GB", 39.4, (8, 0)), "A100-80GB", 39.0, ["gpu-other-kind"]),
    ],
    ids=lambda given: getattr(given, "name", None),
)
def test_a_card_of_no_known_kind_is_used_as_the_kind_that_its_catalogue_calls_it(card, planned_as, gpu_gib, codes):
    """A catalogue need not tell its devices: a card may stand for a shipped kind, as catalogues had to say it once."""
    hardware = {"device": planned_as, "gpus": 1, "gpu_gib": gpu_gib, "bf16": planned_as != "T4", "interconnect": "none"}
    host = {"host_gib": 64, "vcpus": 16, "disk_gb": 500, "network_gbps": 1, "own": True, "price_per_hour": 0}
    node = NodeType.model_validate({"name": "under-the-desk", **hardware, **host})
    promise = Promise(PROMISE.request, DEVICES[node.device], node.gpu_gib)
    found = replace(FOUND, driver=NO_NVML, trial=tried(card, card))
    assert codes_of(differences(promise, found)) == codes
    if not codes:
        said = f"{card.name} is of no known kind, and used as the {planned_as} of the catalogue."
        assert passing(promise, found) == [said]


@pytest.mark.parametrize("names", [(), (RTX_3060.name,)])
def test_a_card_of_the_catalogue_s_own_kind_is_as_planned_and_another_is_not(names):
    """The pod asks no catalogue: the plan brings the kind that it is to have."""
    own = Device("RTX-3060", 12, (8, 6), driver_names=names)
    promise = Promise(PROMISE.request, own, 11.6)
    found = replace(FOUND, driver=NO_NVML, trial=tried(RTX_3060, RTX_3060))
    assert (differences(promise, found), passing(promise, found)) == ([], [])
    others = replace(found, trial=tried(A10G, A10G))
    assert codes_of(differences(promise, others)) == ["gpu-other-kind"]


def test_of_a_known_card_nothing_more_is_said():
    assert passing(PROMISE, FOUND) == []


def test_of_8_gpus_the_same_is_said_once():
    eight = replace(PROMISE, request=replace(PROMISE.request, gpus=8))
    (problem,) = of(eight, driver=driven(*[T4] * 8), trial=tried(*[A10G] * 7, A10G))
    assert problem.field == "GPUs 0, 1, 2, 3, 4, 5, 6, 7"


@pytest.mark.parametrize(
    ("nodes", "joined", "is_right"), [(2, "2:2", True), (2, "2", True), (2, "1:2", False), (3, "2:2", False)]
)
def test_a_job_is_of_the_plan_s_size(nodes, joined, is_right):
    assert (job_problem(nodes, joined) is None) == is_right


def test_a_generating_pod_of_any_kind_of_gpu_is_as_planned():
    assert of(Promise(PROMISE.request), trial=tried(A10G, TRIED)) == []


# ---- tasks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_a_pod(tmp_path):
    """An execution whose outputs go to a bucket."""
    context = FlyteContextManager.current_context()
    access = FileAccessProvider(str(tmp_path), raw_output_prefix="memory://bucket/data/ab/run-n3-0-0")
    parameters = ExecutionParameters.new_builder(context.user_space_params)
    parameters.execution_id = WorkflowExecutionIdentifier("ml", "production", "run")
    state = context.new_execution_state().with_params(user_space_params=parameters.build())
    with FlyteContextManager.with_context(context.with_file_access(access).with_execution_state(state)):
        yield
    checkpoints = Store("memory://bucket/data")
    for kept in checkpoints.names():
        checkpoints.remove(kept)


@pytest.fixture
def plan(run_config):
    return planned(run_config("qlora", hardware={"device": "T4", "instance": "g4dn.xlarge"}))


NOWHERE = FlyteDirectory("s3://nowhere/model")  # a download would fail in other words


@pytest.mark.parametrize(
    "task", [evaluate, generate_answers, train_in_one_process, train_1, train_2], ids=lambda t: t.name
)
def test_a_task_without_a_gpu_says_so_before_it_downloads(task, plan, in_a_pod, run_config, monkeypatch):
    """Evaluating on a T4 node whose pod saw no GPU ended in "Cannot copy out of meta tensor; no data!"."""
    if read_driver().gpus:
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("PET_NNODES", "2:2")
    given = {"config": run_config("qlora"), "plan": plan, "model": NOWHERE, "model_dir": NOWHERE, "dataset": NOWHERE}
    given |= {"prompts": ["Why?"], "adapters": [], "quantize": False, "batch": 1, "max_new_tokens": 1}
    given |= {"temperature": 0.0, "seed": 0, "output_format": "jsonl", "cache_key": "training-1"}
    with pytest.raises(PodError) as caught:
        task.execute(**{name: given.get(name) for name in task.python_interface.inputs})
    assert "gpu-not-visible" in {problem.code for problem in caught.value.problems}


def test_a_pod_of_several_nodes_in_no_job_says_so_at_once(plan, in_a_pod):
    """It waited for the others for half an hour, in each of three attempts. Nothing is asked of the store before."""
    with pytest.raises(PodError, match="this pod is in no PyTorchJob"):
        train_2.execute(plan=plan, cache_key="training-1")
    assert Store("memory://bucket/data").names() == []


def test_an_error_before_the_workers_start_is_explained_once_with_the_words_of_its_checkpoints(
    plan, in_a_pod, reads, monkeypatch, caplog
):
    """Sixty lines of traceback stood above it, unlike in evaluate and generate."""
    caplog.set_level(logging.DEBUG, "thriftune.tasks.failures")
    monkeypatch.setenv("PET_NNODES", "2:2")
    reads(driver=driven(held(6.1)), trial=tried(A10G))
    with pytest.raises(PodError, match="T4 planned") as caught:
        train_2.execute(plan=plan, cache_key="training-1")
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "explained"
    assert list(chain_of(caught.value)) == [caught.value]
    assert "To begin again" in str(caught.value)
    assert len(caplog.records) == 1


@pytest.fixture
def reads(monkeypatch):
    """Readings in place of this machine's, which has no GPU."""
    return lambda **readings: monkeypatch.setattr(pod_check, "read_pod", lambda _: replace(FOUND, **readings))


def test_a_gpu_that_another_process_holds_is_tried_again_and_one_of_another_kind_is_not(plan, in_a_pod, reads):
    reads(driver=driven(T4), trial=tried(TRIED))
    pod_check.require_planned(plan)
    reads(driver=driven(held(6.1)), trial=tried(TRIED))
    with pytest.raises(FlyteRecoverableException, match="another process holds 6.1 GiB"):
        pod_check.require_planned(plan)
    reads(driver=driven(held(6.1)), trial=tried(A10G))
    with pytest.raises(PodError, match="T4 planned"):
        pod_check.require_planned(plan)


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({}, []),
        ({"generate_instance": ""}, []),
        ({"generate_instance": "g5.12xlarge"}, ["gpu-other-kind"]),
        ({"generate_gpus": 4}, ["pod-cut-down"]),
        ({"generate_memory": "26Gi"}, ["pod-cut-down"]),
        ({"shared_memory": "4096Mi"}, ["pod-shared-memory"]),
        ({"generate_memory": "2Gi", "shared_memory": "4Gi"}, []),  # /dev/shm is no larger than the pod's memory
    ],
    ids=str,
)
def test_generating_is_held_against_its_settings(settings, codes, in_a_pod, reads, monkeypatch):
    usual = {"generate_gpus": 2, "generate_cpu": 6, "generate_memory": "24Gi", "shared_memory": "2Gi"}
    platform = Platform(**{"generate_instance": "g4dn.12xlarge", **usual, **settings})
    monkeypatch.setattr(pod_check, "PLATFORM", platform)
    reads()
    found = []
    try:
        pod_check.require_for_generating()
    except PodError as error:
        found = [problem.code for problem in error.problems]
    assert found == codes


def test_a_local_run_is_not_looked_at(plan):
    pod_check.require_planned(plan)
    pod_check.require_for_generating()
    pod_check.require_job(2)


def test_a_run_on_cpus_is_not_looked_at(in_a_pod, run_config):
    cpus = planned(run_config("qlora", hardware={"device": "CPU", "instance": "c7i.large"}))
    assert promise_of(cpus).request.gpus == 0
    pod_check.require_planned(cpus)


def test_trials_may_have_more_gpus_than_they_use_at_a_time_and_not_fewer(plan, in_a_pod, reads, run_config):
    """The last pack of a sweep leaves devices of its node free."""
    reads()  # two GPUs
    for slots in (1, 2):
        pod_check.require_for_trials(plan, slots)
    with pytest.raises(PodError, match="planned"):
        pod_check.require_for_trials(plan, 3)
    reads(driver=driven(T4, T4), trial=tried(A10G, A10G))
    with pytest.raises(PodError, match="T4 planned"):
        pod_check.require_for_trials(plan, 1)
    pod_check.require_for_trials(planned(run_config("qlora", hardware={"device": "CPU", "instance": "c7i.large"})), 9)

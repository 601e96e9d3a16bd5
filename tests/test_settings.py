"""What the environment decides, and that a token is handed on clean and only where it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from planning import planned

from tasks import settings
from tasks.platform import Platform, read, variable
from thriftune.errors import ConfigError
from thriftune.planning.node_environment import node_environment


def problems_of(environment):
    with pytest.raises(ConfigError) as caught:
        read(environment)
    return {problem.field: problem for problem in caught.value.problems}


@pytest.mark.parametrize(("value", "token"), [("hf_abc\n", "hf_abc"), ("  hf_abc", "hf_abc"), ("", None), ("\n", None)])
def test_the_token_of_the_environment_has_no_white_space_around_it(monkeypatch, value, token):
    monkeypatch.setenv("HF_TOKEN", value)
    assert settings.hub_token() == token


def test_nothing_needs_to_be_set():
    assert read({}) == Platform()
    assert read({"THRIFTUNE_HUB_SECRET": "", "THRIFTUNE_CPU": " "}) == Platform()


def test_settings_are_read_by_their_type():
    platform = read(
        {
            "FLYTE_IMAGE": "registry/thriftune:0.1.0",
            "THRIFTUNE_INTERRUPTIBLE": "true",
            "THRIFTUNE_NOTIFY": "a@x.org, b@x.org",
            "THRIFTUNE_LABELS": "team=ml,cost-center=42",
            "THRIFTUNE_GANG": "kueue",
            "THRIFTUNE_QUEUE": "gpus",
        }
    )
    assert platform.image == "registry/thriftune:0.1.0"
    assert platform.interruptible is True
    assert platform.notify == ("a@x.org", "b@x.org")
    assert platform.labels == {"team": "ml", "cost-center": "42"}
    assert (platform.gang, platform.queue) == ("kueue", "gpus")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("THRIFTUNE_CPU", "two", "integer"),
        ("THRIFTUNE_CPU", "0", "greater than 0"),
        ("THRIFTUNE_MEMORY", "8 gigabytes", "is not a quantity such as 8Gi"),
        ("THRIFTUNE_HUB_SECRET", "token", "is not group/key"),
        ("THRIFTUNE_RAW_OUTPUT", "my-bucket", "is not a URL such as s3://bucket/prefix"),
        ("THRIFTUNE_SCRATCH", "nvme", "is not emptyDir, class:<storage class> or claim:<claim>"),
        ("THRIFTUNE_SCRATCH", "claim:", "is not emptyDir"),
        ("THRIFTUNE_SCRATCH", "class:My_Class", "is not emptyDir"),
        ("THRIFTUNE_INSTANCE_LABEL", "my label", "is not the name of a label"),
        ("THRIFTUNE_LABELS", "team=a,team=b", "has team twice"),
        ("THRIFTUNE_LABELS", "a/x/y=z", "is not a label"),
        ("THRIFTUNE_LABELS", "app=mine", "is always set"),
        ("THRIFTUNE_MEMORY", "0Gi", "is not a quantity"),
        ("THRIFTUNE_NOTIFY", "ml at example.org", "is not a mail address"),
        ("THRIFTUNE_RAW_OUTPUT", "file:///x", "is not a URL"),
        ("THRIFTUNE_GPU_TIMEOUT_HOURS", "1e12", "less than or equal to 8760"),
        ("THRIFTUNE_NIGHTLY_CRON", "99 99 * * *", "is not a time"),
        ("FLYTE_IMAGE", "a b", "is not the name of an image"),
        ("THRIFTUNE_QUEUE", "gpus", "is only for kueue"),
        ("THRIFTUNE_GANG", "slurm", "volcano"),
        ("THRIFTUNE_GANG", "kueue", ""),
        ("THRIFTUNE_LABELS", "team", "contains 'team', which is not name=value"),
        ("THRIFTUNE_LABELS", "team=a b", "is not a label"),
        ("THRIFTUNE_NIGHTLY_CRON", "0 2 * *", "does not have five fields"),
        ("THRIFTUNE_INTERRUPTIBLE", "perhaps", "boolean"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_variable(name, value, said):
    found = problems_of({name: value})
    problem = found.get(name) or found["THRIFTUNE_QUEUE"]
    assert said in problem.message
    assert problem.remedy


def test_a_misspelt_setting_is_an_error_that_says_what_was_meant():
    (problem,) = problems_of({"THRIFTUNE_RETIRES": "3"}).values()
    assert "is not a setting" in problem.message
    assert "THRIFTUNE_RETRIES" in problem.remedy


@pytest.mark.parametrize(
    "name", ["THRIFTUNE_HF_TOKEN", "THRIFTUNE_HUB_SECRET", "THRIFTUNE_WANDB_SECRET", "THRIFTUNE_X"]
)
def test_a_token_that_was_put_into_the_wrong_variable_is_not_printed(name):
    with pytest.raises(ConfigError) as caught:
        read({name: "hf_SecretSecret"})
    assert name in str(caught.value)
    assert "hf_SecretSecret" not in str(caught.value)


def test_white_space_around_a_value_does_not_count():
    assert read({"FLYTE_IMAGE": " registry/thriftune:0.1.0 \n"}).image == "registry/thriftune:0.1.0"


def test_what_kubernetes_says_of_a_service_of_that_name_is_not_a_setting():
    links = ("THRIFTUNE_SERVICE_HOST", "THRIFTUNE_SERVICE_PORT", "THRIFTUNE_PORT", "THRIFTUNE_PORT_80_TCP_ADDR")
    assert read(dict.fromkeys(links, "10.0.0.1")) == Platform()


def test_everything_that_is_wrong_is_said_at_once():
    assert len(problems_of({"THRIFTUNE_CPU": "x", "THRIFTUNE_MEMORY": "x", "THRIFTUNE_CUP": "1"})) == 3


def test_pods_get_what_was_read_and_no_token_and_no_address():
    code = "from tasks.settings import POD_ENVIRONMENT; print(sorted(POD_ENVIRONMENT))"
    environment = {
        **os.environ, "HF_TOKEN": "hf_secret", "WANDB_API_KEY": "key", "THRIFTUNE_RETRIES": "5",
        "THRIFTUNE_NOTIFY": "a@x.org", "THRIFTUNE_OUTPUTS": "elsewhere", "THRIFTUNE_CPU": "",
    }  # fmt: skip
    environment.pop("FLYTE_IMAGE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['THRIFTUNE_RETRIES', 'TOKENIZERS_PARALLELISM']"


def test_every_setting_says_what_it_is():
    assert len(Platform.model_fields) > 30
    assert all(len(field.description) > 10 for field in Platform.model_fields.values())
    assert variable("image") == "FLYTE_IMAGE"


@pytest.mark.parametrize(
    ("environment", "there"),
    [({}, False), ({"WANDB_API_KEY": "key"}, True), ({"WANDB_MODE": "offline"}, True), ({"WANDB_API_KEY": " "}, False)],
)
def test_whether_weights_and_biases_would_let_a_run_report(monkeypatch, tmp_path, environment, there):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.has_wandb_login() is there


def test_a_login_on_this_machine_is_found(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert settings.has_wandb_login() is True


def test_processes_of_a_node_share_its_cpus(run_config):
    """torchrun gives each one thread, and DeepSpeed's CPU Adam would step offloaded states with it."""
    plan = planned(
        run_config(
            hardware={"device": "T4", "instance": "g4dn.metal", "nodes": 1},
            training={"global_batch": 8, "micro_batch": 1},
        )
    )
    assert node_environment(plan, 8) == {"OMP_NUM_THREADS": str(95 // 8)}


def test_nodes_are_told_how_to_reach_each_other(run_config):
    plan = planned(
        run_config(
            hardware={"device": "T4", "instance": "g4dn.metal", "nodes": 2},
            training={"global_batch": 16, "micro_batch": 1},
        )
    )
    told = node_environment(plan, 8, 2)
    assert told["NCCL_IB_DISABLE"] == "1"
    assert int(told["NCCL_SOCKET_NTHREADS"]) * int(told["NCCL_NSOCKS_PERTHREAD"]) <= 64  # NCCL's own limit
    assert told["NCCL_SOCKET_IFNAME"].startswith("^lo")
    assert set(node_environment(plan)) == {"OMP_NUM_THREADS"}  # an evaluation is one process on one of them


def test_what_is_set_already_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("NCCL_IB_DISABLE", raising=False)
    settings.default_environment({"OMP_NUM_THREADS": "11", "NCCL_IB_DISABLE": "1"})
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["NCCL_IB_DISABLE"] == "1"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_segments_of_torchs_allocator_grow_unless_it_is_told_otherwise_by_either_name(monkeypatch, given, made):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what the function sets is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings.default_allocator()
    assert {name: os.environ[name] for name in names if name in os.environ} == made


_ASK = """
import sys
from tasks import settings
sys.stdin.readline()
print(settings.result_path("tiny", "model"), settings.result_path("tiny", "checkpoints"))
"""


def places_asked_for_at_once(folder, *runs):
    """The places that processes which begin in the same second get, each of a run; empty: of one of its own."""
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(folder)}
    environment.pop("THRIFTUNE_RUN_STAMP", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ASK], cwd=settings.CHECKOUT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": str(settings.CHECKOUT), **({"THRIFTUNE_RUN_STAMP": run} if run else {})},
        )
        for run in runs
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].split() for process in processes]


def test_runs_of_one_name_that_begin_in_one_second_have_a_place_each(tmp_path):
    """Two shared a folder: the second went on from the first one's checkpoint, and both left one model."""
    began = "20260101T000000"
    *places, own = places_asked_for_at_once(tmp_path, f"{began}-one", f"{began}-two", f"{began}-two", "")
    assert places[1] == places[2], "processes of one run agree"
    folders = {Path(model).parent for model, _ in [*places, own]}
    names = sorted(folder.name for folder in folders)
    assert names[:2] == [began, f"{began}-2"]
    assert len(names) == 3, "a process that a person starts is a run of its own"
    assert all(Path(checkpoints) == Path(model).parent / "checkpoints" for model, checkpoints in [*places, own])
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == names

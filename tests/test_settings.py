"""What the environment decides, and that a token is handed on clean and only where it is asked for."""

import os

import pytest
from planning import planned

from tasks import settings
from thriftune.hardware import DEVICES


@pytest.mark.parametrize(("value", "token"), [("hf_abc\n", "hf_abc"), ("  hf_abc", "hf_abc"), ("", None), ("\n", None)])
def test_the_token_of_the_environment_has_no_white_space_around_it(monkeypatch, value, token):
    monkeypatch.setenv("HF_TOKEN", value)
    assert settings.hub_token() == token


def test_no_secret_is_asked_for_unless_one_is_configured(monkeypatch):
    assert settings.hub_secrets() == []
    monkeypatch.setattr(settings, "HUB_SECRET", "hub/token")
    (secret,) = settings.hub_secrets()
    assert (secret.group, secret.key) == ("hub", "token")


def test_pods_get_what_this_module_read_and_no_token():
    assert "HF_TOKEN" not in settings.POD_ENVIRONMENT
    assert not {"THRIFTUNE_OUTPUTS", "THRIFTUNE_RUN_STAMP"} & set(settings.POD_ENVIRONMENT)


def test_processes_of_a_node_share_its_cpus(monkeypatch, run_config):
    """torchrun gives each one thread, and DeepSpeed's CPU Adam would step offloaded states with it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    plan = planned(
        run_config(
            hardware={"device": "T4", "instance": "g4dn.metal", "nodes": 1},
            training={"global_batch": 8, "micro_batch": 1},
        )
    )
    settings.share_cpus(plan)
    assert int(os.environ["OMP_NUM_THREADS"]) == 95 // 8


def test_a_node_of_the_plan_is_asked_for_whole(run_config):
    plan = planned(
        run_config(
            hardware={"device": "T4", "instance": "g4dn.12xlarge", "nodes": 1},
            training={"global_batch": 4, "micro_batch": 1},
        )
    )
    resources = settings.node_resources(plan)
    assert (resources.cpu, resources.gpu) == ("47", "4")
    assert 160 < int(resources.mem.removesuffix("Gi")) < 192


def test_every_gpu_of_the_table_has_a_flyte_accelerator():
    assert set(settings.ACCELERATORS) == {name for name, device in DEVICES.items() if device.is_gpu}

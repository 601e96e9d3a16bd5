"""What the environment decides, and that a token is handed on clean and only where it is asked for."""

import pytest

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
    assert int(settings.TRAINING_ENVIRONMENT["OMP_NUM_THREADS"]) > 1


def test_every_gpu_of_the_table_has_a_flyte_accelerator():
    assert set(settings.ACCELERATORS) == {name for name, device in DEVICES.items() if device.is_gpu}

"""Trials that share a node: real processes, the tiny model, the real Trainer."""

from pathlib import Path

import pytest
from trials import Given, config_of, dataset_of, pack_of

from thriftune.training.lines import read_folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    return dataset_of(tmp_path_factory.mktemp("trials"), tiny_model_dir, chat_rows_file)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Where local runs write."""
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def given(tiny_model_dir, dataset, outputs):
    def make(*configs, slots=3, halving=""):
        return Given(pack_of(list(configs), tiny_model_dir, slots), str(tiny_model_dir), str(dataset), halving)

    return make


def test_three_at_once(given, outputs):
    made = given(*(config_of(number) for number in range(3))).train()
    assert [outcome.status for outcome in made] == ["trained"] * 3, made

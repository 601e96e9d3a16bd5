"""Run files as `pyflyte run` reads them: flytekit's own parameter type, on a file."""

from pathlib import Path

import pytest
import yaml
from conftest import run_dict
from flytekit.interaction import click_types

from tasks import run_files
from thriftune.config import RunConfig
from thriftune.errors import ConfigError


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What `--config` gives for a file with this text."""
    monkeypatch.setattr(click_types, "yaml", click_types.yaml)
    run_files.use_in_pyflyte()

    def read(text: str, encoding: str = "utf-8") -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding=encoding)
        return click_types.JsonParamType(RunConfig).convert(str(file), None, None)

    return read


def text_of(**overrides) -> str:
    return yaml.safe_dump(run_dict(**overrides))


def test_a_name_that_looks_like_a_date_is_the_text_that_stands_there(typed):
    """It ended with "Object of type date is not JSON serializable", before anything of ours saw it."""
    text = text_of().replace("name: tiny", "name: 2024-01-05")
    assert "2024-01-05" in text
    assert typed(text).name == "2024-01-05"


def test_a_number_that_was_meant_as_text_is_told_to_be_quoted(typed):
    text = text_of(model={"source": "owner/model", "revision": "REVISION"}).replace("REVISION", "0012345")
    with pytest.raises(ConfigError, match=r"model\.revision = 5349: .*\(octal\).* in quotes.*: revision: '\.\.\.'"):
        typed(text)


def test_a_run_file_that_is_no_text_in_utf8_or_no_yaml_is_refused(typed):
    with pytest.raises(ConfigError, match=r"--config = .*run\.yaml: is not UTF-8\. .*iconv -f UTF-16"):
        typed(text_of(), "utf-16")
    with pytest.raises(ConfigError, match=r"(?s)--config = .*run\.yaml: is not YAML: .*line 1"):
        typed("name: [")


def test_every_run_file_here_is_read_as_by_yaml(typed):
    files = sorted(Path(__file__).parents[1].glob("configs/*.yaml"))
    assert files
    for file in files:
        assert run_files.load(file.read_text()) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("again", ["name: other", "training: {}"])
def test_a_key_that_stands_twice_is_refused(typed, again):
    """The last of them won, without a word."""
    key = again.partition(":")[0]
    with pytest.raises(ConfigError, match=rf"{key} = line \d+: stands in line \d+ too"):
        typed(text_of() + again + "\n")

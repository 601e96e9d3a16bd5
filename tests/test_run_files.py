"""Run files as `pyflyte run` reads them: flytekit's own parameter type, on a file."""

import itertools
import json
from pathlib import Path

import pytest
import rich_click as click
import yaml
from conftest import run_dict
from flytekit.clis.sdk_in_container import run
from flytekit.interaction import click_types

from tasks import run_files
from thriftune.config import RunConfig
from thriftune.errors import ConfigError


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What `--config` gives for a file with this text."""
    for module, name in ((click_types, "yaml"), (click_types, "json"), (run, "yaml")):
        monkeypatch.setattr(module, name, getattr(module, name))
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
    with pytest.raises(ConfigError, match=rf"{key} = line \d+: is in line \d+ too"):
        typed(text_of() + again + "\n")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)
BAD = {
    "aliases of aliases": (LAUGHS, "expands to more than 20,000 keys and values"),
    "merged aliases": (
        "a: &a {k: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for b, n in itertools.pairwise("abcdefghi")),
        "expands to more than 20,000 keys and values",
    ),
    "a list that contains itself": ("name: &a [*a]", "has a value that contains itself, in line 1"),
    "a mapping that contains itself": ("name: &a\n  b: *a", "has a value that contains itself, in line 2"),
    "depth": ("name: " + "[" * 100_000, "is nested more than 32 levels deep"),
    "depth by mappings": ("".join(f"{' ' * n}a:\n" for n in range(200)), "is nested more than 32 levels deep"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(21_000)), "expands to more than 20,000 keys and values"),
    "size": ("name: " + "x" * (1 << 21), "has more than 1,048,576 characters"),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD)
def test_a_run_file_without_an_end_is_refused_at_once(typed, text, reason):
    """Aliases that expand took 1.4 GB in 40 s, depth ended in a RecursionError."""
    with pytest.raises(ConfigError) as raised:
        typed(text)
    assert f": {reason}" in str(raised.value)
    assert len(raised.value.problems) == 1


def test_aliases_that_repeat_a_few_values_are_read(typed):
    text = text_of() + "# again\n"
    assert typed(text.replace("name: tiny", "name: &n tiny")).name == "tiny"
    assert run_files.load("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 900 + "1" + "}" * 900])
def test_json_in_place_of_a_run_file_has_an_end_too(typed, tmp_path, deep):
    with pytest.raises(ConfigError, match="is nested more than 64 levels deep"):
        click_types.JsonParamType(RunConfig).convert(deep, None, None)
    file = tmp_path / "run.json"
    file.write_text(deep)
    with pytest.raises(ConfigError, match="is nested more than 64 levels deep"):
        click_types.JsonParamType(RunConfig).convert(str(file), None, None)


def test_json_is_read_as_before(typed):
    assert click_types.JsonParamType(RunConfig).convert(json.dumps(run_dict()), None, None).name == "tiny"
    with pytest.raises(click.BadParameter, match="should be a valid json object"):
        click_types.JsonParamType(RunConfig).convert(str(Path(__file__)), None, None)


def test_a_file_of_all_inputs_has_an_end_too(typed, monkeypatch):
    with pytest.raises(ConfigError, match="--inputs-file: expands to more than 20,000 keys and values"):
        run.yaml.safe_load(LAUGHS)
    assert run.yaml.safe_load("a: 1") == {"a": 1}
